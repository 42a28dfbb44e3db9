"""Fixtures: one replica for the session, one router per set of flags.

A module that needs other flags than the default says so in `ROUTER_FLAGS`. Every async test here runs on the
session's loop, because the replica lives there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

import wirekit


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def replica_server():
    replica = wirekit.Replica()
    yield replica
    replica.stop()


@pytest.fixture(scope="session")
def start_router(tmp_path_factory):
    """Start a router in front of these replicas, or take the one that runs already."""
    running = {}

    def start(replicas, flags=()):
        key = (tuple(replicas), tuple(flags))
        if key not in running:
            log = tmp_path_factory.mktemp("router") / "stderr"
            running[key] = wirekit.Router(replicas, flags, log)
        return running[key]

    yield start
    for router in running.values():
        router.stop()


@pytest.fixture
def router(request, replica_server, start_router):
    flags = getattr(request.module, "ROUTER_FLAGS", ())
    router = start_router([f"http://127.0.0.1:{replica_server.port}"], flags)
    yield router
    router.check()


@pytest_asyncio.fixture(loop_scope="session")
async def replica(replica_server):
    replica_server.reset()
    yield replica_server
    violations = replica_server.violations
    replica_server.reset()  # what ended does not keep its socket until the next one who asks
    assert not violations, violations


@pytest_asyncio.fixture(loop_scope="session")
async def connect(router):
    """Open client connections; they are closed with the test."""
    clients = []

    async def connect(**options):
        clients.append(await wirekit.Client.connect(router.port, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
