"""A pool for each test, closed after it."""

import sys
from pathlib import Path

import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))


@pytest_asyncio.fixture
async def bench():
    from upkit import PoolBench

    bench = PoolBench()
    yield bench
    await bench.close()
