"""Fixtures that several folders share.

Tests that import the router run its Python source, so that fakes may stand in for its types; tests that start
it as a process run what a user runs, compiled if `router compile` was called.
"""

import os
import sys
from pathlib import Path

assert "router" not in sys.modules, "the choice between source and compiled modules is made at import"
os.environ["ROUTER_PURE"] = "1"
import router  # noqa: E402, F401

del os.environ["ROUTER_PURE"]

sys.path.insert(0, str(Path(__file__).parent))  # for the kits that several folders share

import pytest  # noqa: E402
from toldkit import told  # noqa: E402


def pytest_sessionfinish(session):
    """A process of many hands over what its tests told."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["told"] = told


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    told.update(getattr(node, "workeroutput", {}).get("told", {}))


def pytest_terminal_summary(terminalreporter):
    if told:
        terminalreporter.section("what the tests stood on", sep="-")
        for topic, said in sorted(told.items()):
            terminalreporter.write_line(f"{topic}: {said}")
