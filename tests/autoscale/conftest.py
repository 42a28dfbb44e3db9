"""A store in this process; it ends with the test."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "config"))

from configkit import Store  # noqa: E402


@pytest.fixture
async def make_store():
    """`await make_store(**options of configkit.Store.start)`, with its data on disk."""
    stores = []
    with tempfile.TemporaryDirectory(prefix="r") as name:

        async def make(**options):
            place = Path(name) / str(len(stores))
            place.mkdir()
            stores.append(Store(place, place / "data"))
            return await stores[-1].start(**options)

        yield make
        for store in stores:
            await store.stop()


@pytest.fixture
async def store(make_store):
    return await make_store()
