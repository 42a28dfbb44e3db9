"""How input arrives: every receive-side test runs whole, byte by byte and in random pieces."""

import random
import sys
from pathlib import Path

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))


def whole(data):
    return [data] if data else []


def byte_by_byte(data):
    return [data[i : i + 1] for i in range(len(data))]


def in_pieces(seed):
    def cut(data):
        rng = random.Random(seed)
        pieces = []
        while data:
            size = min(len(data), rng.choice((1, 2, 3, 7, 19, 64)))
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    return cut


@pytest.fixture(
    params=[whole, byte_by_byte, in_pieces(1), in_pieces(2)], ids=["whole", "bytes", "pieces-1", "pieces-2"]
)
def cut(request):
    return request.param


def pytest_asyncio_loop_factories(config, item):
    """Real sockets are driven by the loop that the router runs on."""
    return {"uvloop": uvloop.new_event_loop}
