"""Skips this folder where no namespaces can be made, and says why."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab import Lab, missing


@pytest.fixture(scope="session", autouse=True)
def able():
    why = missing()
    if why:
        pytest.skip(why)


@pytest.fixture(scope="module")
def lab(able):
    with Lab() as lab:
        yield lab
