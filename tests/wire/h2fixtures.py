"""Fixtures of the HTTP/2 tests: a plugin of the modules that name it, since only they need it.

`h2_replica` is reached by prior knowledge; `h2_router` has it behind itself, `router` the one of HTTP/1.1.
"""

from __future__ import annotations

import h2kit
import pytest
import pytest_asyncio
import wirekit


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def h2_replica_server():
    replica = h2kit.H2Replica()
    yield replica
    replica.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def h2_replica(h2_replica_server):
    await h2_replica_server.reset()
    yield h2_replica_server
    assert not h2_replica_server.violations, h2_replica_server.violations


@pytest.fixture
def h2_router(request, h2_replica_server, start_router):
    flags = getattr(request.module, "ROUTER_FLAGS", ())
    router = start_router([f"h2c://127.0.0.1:{h2_replica_server.port}"], flags)
    yield router
    router.check()


async def opener(kind, port):
    """A function that opens connections, and the list of those it opened."""
    clients = []

    async def connect(*arguments, **options):
        clients.append(await kind.connect(port, *arguments, **options))
        return clients[-1]

    return connect, clients


def end(clients):
    violations = [client.violation for client in clients if getattr(client, "violation", None)]
    for client in clients:
        if not client.shut:
            client.close()
    assert not violations, violations


@pytest_asyncio.fixture(loop_scope="session")
async def h2_connect(router):
    """HTTP/2 clients of the router with the HTTP/1.1 replica."""
    connect, clients = await opener(h2kit.H2Client, router.port)
    yield connect
    end(clients)


@pytest_asyncio.fixture(loop_scope="session")
async def h2_h2_connect(h2_router):
    """HTTP/2 clients of the router with the HTTP/2 replica."""
    connect, clients = await opener(h2kit.H2Client, h2_router.port)
    yield connect
    end(clients)


@pytest_asyncio.fixture(loop_scope="session")
async def h1_h2_connect(h2_router):
    """HTTP/1.1 clients of the router with the HTTP/2 replica."""
    connect, clients = await opener(wirekit.Client, h2_router.port)
    yield connect
    end(clients)
