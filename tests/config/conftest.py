"""A store with the schema and agents on it; both end with the test."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from configkit import Agent, Store  # noqa: E402


@pytest.fixture
def folder():
    """A directory with a short path: that of a Unix socket ends at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="r") as name:
        yield Path(name)


@pytest.fixture
async def make_store(folder):
    """`await make_store(name="s", persistent=False, init=True, hooks=None)`; all are stopped at the end."""
    stores = []

    async def make(name="s", *, persistent=False, init=True, hooks=None, **options):
        place = folder / name
        place.mkdir(exist_ok=True)
        store = Store(place, place / "data" if persistent else None, hooks)
        stores.append(store)
        return await store.start(init=init, **options)

    yield make
    for store in reversed(stores):
        await store.stop()


@pytest.fixture
async def store(make_store):
    return await make_store()


@pytest.fixture
async def make_agent(folder):
    """`make_agent(store, name="a", **settings)`: not started; the same name has the same state directory."""
    agents = []

    def make(store, name="a", **settings):
        state = folder / name
        state.mkdir(exist_ok=True)
        where = store if isinstance(store, str) else f"embedded:{store.address.removeprefix('unix:')}"
        agent = Agent(where, state, **settings)
        agents.append(agent)
        return agent

    yield make
    for agent in reversed(agents):
        await agent.close()
