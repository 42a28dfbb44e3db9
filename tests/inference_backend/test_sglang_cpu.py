"""The environment of the real SGLang: found, judged and made, without making it; the commands around it."""

import json
import runpy
import subprocess
import sys

import pytest
from click.testing import CliRunner

from inference_backend.__main__ import main
from inference_backend.launch import LaunchError, SglangProcess
from inference_backend.sglang_cpu import pins
from inference_backend.sglang_cpu.place import SHIM, VARIABLE, InstallError, Place


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty directory, and steps that only say what they would do."""
    place = Place(tmp_path / "env")
    ran = []

    def run(step, head, show):
        ran.append(step.title)
        show("working")
        if step.title == "torch" and place.fails:
            raise InstallError("torch: no")
        place.python.parent.mkdir(parents=True, exist_ok=True)
        place.python.touch()

    place.ran = ran
    place.fails = False
    monkeypatch.setattr(place, "_run", run)
    return place


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "by-variable"))
    assert Place().root == tmp_path / "by-variable"
    assert Place(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Place().root == tmp_path / "router" / "sglang-cpu"


def test_an_install_does_only_what_is_left(place):
    told, shown = [], []
    assert not place.is_present
    place.fails = True
    with pytest.raises(InstallError):
        place.install(told.append, shown.append)
    place.fails = False
    place.install(told.append, shown.append)
    assert place.ran == [
        "virtual environment", "torch", "torch", "what SGLang imports", "SGLang 0.5.23", "tiny model", "trial import",
    ]  # fmt: skip
    assert place.is_present and shown and "there already" in " ".join(told)
    before = list(place.ran)
    place.install(told.append, shown.append)
    assert place.ran == before
    record = place.root / "steps.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"torch": "another version"}))
    assert not place.is_present
    place.install(told.append, shown.append)
    assert place.ran == [*before, "torch"] and place.is_present
    record.write_text("{ broken")
    assert not place.is_present


def test_a_step_that_fails_shows_what_it_said(tmp_path):
    place = Place(tmp_path)
    step = type(place._steps()[0])("any", "x", (sys.executable, "-c", "print('a reason'); raise SystemExit(3)"))
    shown = []
    with pytest.raises(InstallError, match="(?s)1/1 any: exit code 3.*a reason"):
        place._run(step, "1/1 any", shown.append)
    assert shown == ["1/1 any: a reason"]


def test_torch_comes_first_and_exactly():
    assert pins.TORCH == ("torch==2.13.0",)
    assert not any(line.startswith("torch") for line in pins.IMPORTED)
    assert pins.BARE[0] == "sglang==0.5.23"


def test_the_command_and_its_environment(tmp_path):
    place = Place(tmp_path)
    command = place.command(4_711, extra=("--max-queued-requests", "2"))
    assert command[-2:] == ["--max-queued-requests", "2"] and "--max-total-tokens" in command
    environment = place.environment({"PYTHONPATH": "/mine", "OMP_NUM_THREADS": "4"})
    assert environment["PYTHONPATH"] == f"{SHIM}:/mine" and environment["OMP_NUM_THREADS"] == "4"
    assert environment["SGLANG_USE_CPU_ENGINE"] == "1"


def test_commands_without_an_environment(tmp_path):
    for words in (["path", str(tmp_path)], ["serve", "--directory", str(tmp_path), "--port", "1"]):
        result = CliRunner().invoke(main, ["sglang-cpu", *words])
        assert result.exit_code == 1 and "sglang-cpu install" in result.output


async def test_a_server_without_an_environment_fails_with_the_reason(tmp_path):
    with pytest.raises(LaunchError, match="(?s)exited before it was ready.*sglang-cpu install"):
        await SglangProcess(env={VARIABLE: str(tmp_path)}).start()


def test_the_shim_stands_in_for_triton_and_leaves_others_alone():
    program = """
import triton, triton.language as tl
from triton.runtime import driver
from triton.language.extra.libdevice import exp
@triton.jit
def kernel(x: tl.constexpr): return x
@triton.autotune(configs=[triton.Config({}, num_warps=4)], key=["x"])
@triton.jit
def tuned(x): return x
assert kernel(3) == tuned(3) == 3
assert triton.cdiv(7, 2) == 4 and triton.next_power_of_2(5) == 8 and triton.next_power_of_2(1) == 1
assert tl.constexpr(5).value == 5
class Sub(triton.Anything[int]): pass
import sgl_kernel
from sgl_kernel.mamba import causal_conv1d_fn_cpu
from sgl_kernel import silu_and_mul
assert not hasattr(triton, "__nonsense__")
for absent in (causal_conv1d_fn_cpu, silu_and_mul):
    try: absent(1)
    except NotImplementedError as error: print(error)
import sys; assert "torch" not in sys.modules
try: import no_such_module
except ModuleNotFoundError: print("done")
"""
    shown = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SHIM)}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split("\n")[-2] == "done" and "silu_and_mul needs a GPU" in shown.stdout


def test_the_tiny_models_maker_needs_nothing_of_the_project():
    maker = SHIM.parent / "tiny_model.py"
    text = maker.read_text()
    assert "inference_backend" not in text and "router" not in text
    assert "<|im_start|>assistant" in runpy.run_path(str(maker))["TEMPLATE"]
