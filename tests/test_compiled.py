"""Which modules are imported: compiled ones only if the whole build is of the sources as they are.

No compiler runs here: stand-ins that cannot be loaded take the places of compiled modules, in a copied tree,
so that an import of one of them is an error.
"""

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import router

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
SOURCE = Path(router.__file__).parent


@pytest.fixture
def tree(tmp_path):
    """A copy of the package, without anything that was built."""
    ignored = shutil.ignore_patterns("*.so", "*.pyc", "__pycache__", "compiled.json")
    shutil.copytree(SOURCE, tmp_path / "router", ignore=ignored)
    return tmp_path


def run(tree, code, **env):
    """Run code on the copied tree; return the finished process."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ROUTER_")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=clean | {"PYTHONPATH": str(tree)} | env, capture_output=True, text=True, timeout=30, check=False
    )  # fmt: skip


def ask(tree, expression, **env):
    """Evaluate with `router.compiled` as `compiled`, with what `router` itself chose already undone by ROUTER_PURE."""
    done = run(
        tree,
        f"import json, router.compiled as compiled; print(json.dumps({expression}))",
        **({"ROUTER_PURE": "1"} | env),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def pretend_built(tree, *, current=True, record=None):
    """Put a stand-in beside every hot source, and the record of the build."""
    hot = ask(tree, "compiled.HOT")
    for name in hot:
        (tree / "router" / f"{name}{SUFFIX}").write_bytes(b"not a shared library")
    (tree / "router" / f"abc__mypyc{SUFFIX}").write_bytes(b"not a shared library")
    if record is None:
        record = json.dumps(
            {"digest": ask(tree, "compiled.digest()") if current else "0" * 64, "modules": len(hot)}
        )
    (tree / "router" / "compiled.json").write_text(record)


IMPORT = "import router.http, router.transport.codec.h1.server as s; print(router.http.__file__, s.__file__)"


def is_source(tree, **env):
    done = run(tree, IMPORT, **env)
    assert done.returncode == 0, done.stderr
    return all(path.endswith(".py") for path in done.stdout.split())


def uses_compiled(tree, **env):
    """The stand-ins cannot be loaded: an ImportError says that they were chosen."""
    done = run(tree, IMPORT, **env)
    return done.returncode != 0 and "ImportError" in done.stderr


def test_every_hot_module_exists():
    from router import compiled

    assert all((compiled.ROOT / f"{name}.py").is_file() for name in compiled.HOT)
    assert len(set(compiled.HOT)) == len(compiled.HOT)


def test_without_a_build_the_source_is_used(tree):
    assert is_source(tree)


class TestDigest:
    def test_it_stays(self, tree):
        assert ask(tree, "compiled.digest()") == ask(tree, "compiled.digest()")

    def test_it_changes_with_a_hot_source(self, tree):
        before = ask(tree, "compiled.digest()")
        path = tree / "router" / "transport" / "codec" / "h1" / "memo.py"
        path.write_text(path.read_text() + "# changed\n")
        assert ask(tree, "compiled.digest()") != before

    def test_it_does_not_change_with_another(self, tree):
        before = ask(tree, "compiled.digest()")
        path = tree / "router" / "app.py"
        path.write_text(path.read_text() + "# changed\n")
        assert ask(tree, "compiled.digest()") == before


class TestChoice:
    def test_a_current_build_is_used(self, tree):
        pretend_built(tree)
        assert ask(tree, "compiled.is_current()")
        assert uses_compiled(tree)

    def test_unless_it_is_asked_not_to(self, tree):
        pretend_built(tree)
        assert is_source(tree, ROUTER_PURE="1")

    def test_a_stale_one_is_not(self, tree):
        pretend_built(tree, current=False)
        assert is_source(tree)

    def test_a_source_that_changed_since(self, tree):
        pretend_built(tree)
        path = tree / "router" / "http.py"
        path.write_text(path.read_text() + "# changed\n")
        assert is_source(tree)

    @pytest.mark.parametrize("record", ["", "{", "[]", "null", "{}", '{"digest": 1}', "\x00"])
    def test_a_torn_record_is_none(self, tree, record):
        pretend_built(tree, record=record)
        assert is_source(tree)

    def test_a_build_with_a_file_missing(self, tree):
        pretend_built(tree)
        (tree / "router" / f"http{SUFFIX}").unlink()
        assert is_source(tree)

    def test_a_build_that_was_interrupted_before_its_record(self, tree):
        """`all of them or none`: the record is written last, so without one the build is not whole."""
        pretend_built(tree)
        (tree / "router" / "compiled.json").unlink()
        assert is_source(tree)

    def test_other_packages_are_found_as_ever(self, tree):
        pretend_built(tree, current=False)
        done = run(tree, "import router.http, msgspec, uvloop, hashlib; print(msgspec._core.__file__)")
        assert done.returncode == 0, done.stderr
        assert ".so" in done.stdout
