import pytest
import pytest_asyncio
import uvloop

from loadtest.replica import serve


@pytest.hookimpl(
    optionalhook=True
)  # pytest-asyncio before 1.5 has no such hook; these tests pass on asyncio too
def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def replica_port():
    """A replica in this loop with short streams: 5 events, 2 ms apart, and [DONE]."""
    server = await serve(5, 0.002)
    yield server.sockets[0].getsockname()[1]
    server.close()
