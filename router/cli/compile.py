"""`router compile`: the data path as machine code, from the same source. See `router.compiled`."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import click
from rich.console import Console

from router.compiled import HOT, RECORD, ROOT, built_files, digest, is_current


@click.command("compile")
@click.option("--clean", is_flag=True, help="Remove what was compiled; the Python source is used again.")
@click.option("--if-needed", is_flag=True, help="Do nothing if the compiled modules are current.")
def compile_(clean: bool, if_needed: bool) -> None:
    """Compile the data path in place: the same source, half the time in Python.

    Needs mypy (pip install 'replica-router[compile]') and a C compiler. Modules that are older than their
    source are never used, so this may be forgotten without harm.
    """
    if if_needed and is_current():
        return
    remove()
    if clean:
        return
    with Console(stderr=True).status(f"compiling {len(HOT)} modules; about a minute"):
        try:
            build()
        except ImportError as missing:
            hint = "install it with: pip install 'replica-router[compile]'"
            raise click.ClickException(f"{missing}; {hint}") from None
    RECORD.write_text(json.dumps({"digest": digest(), "modules": len(HOT)}), encoding="utf-8")
    click.echo(f"compiled {len(HOT)} modules", err=True)


def remove() -> None:
    """Remove every file of an earlier build."""
    RECORD.unlink(missing_ok=True)
    for path in built_files():
        path.unlink()


def build() -> None:
    """Run mypyc and the C compiler; whatever they say goes to stderr when they fail."""
    from mypyc.build import mypycify  # noqa: PLC0415 - of an extra
    from pybind11.setup_helpers import ParallelCompile  # noqa: PLC0415
    from setuptools import Distribution  # noqa: PLC0415

    # A file each and as many at a time as there are cores: all in one takes a C compiler three times as long.
    ParallelCompile(default=0).install()
    before = Path.cwd()
    os.chdir(ROOT.parent)
    try:
        with tempfile.TemporaryDirectory(prefix="router-compile-") as folder:
            sources = [f"{ROOT.name}/{name}.py" for name in HOT]
            flags = ["--no-warn-unused-ignores"]
            modules = mypycify([*flags, *sources], opt_level="3", target_dir=folder, multi_file=True)
            distribution = Distribution({"name": "router-hot", "ext_modules": modules})
            command = distribution.get_command_obj("build_ext")
            command.inplace = True
            command.build_temp = folder
            distribution.run_command("build_ext")
        for shared in ROOT.parent.glob(f"*__mypyc{EXTENSION_SUFFIXES[0]}"):
            shared.rename(ROOT / shared.name)  # where it is found whatever the current folder
    finally:
        os.chdir(before)
