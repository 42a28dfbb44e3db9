"""Engines and clients for the tests of this directory."""

import asyncio
from time import monotonic

import httpx
import pytest
import pytest_asyncio

from inference_backend.launch import ReplicaProcess


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    """One instant engine for every test of a module."""
    async with ReplicaProcess.simulate(time_scale=0, header_overrides=True) as replica:
        yield replica
        assert replica.stderr() == ""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow_engine():
    """One engine with steps of about 2 ms."""
    async with ReplicaProcess.simulate(profile="tiny", time_scale=1) as replica:
        yield replica
        assert replica.stderr() == ""


@pytest_asyncio.fixture(loop_scope="module")
async def client(engine):
    async with httpx.AsyncClient(base_url=engine.url, timeout=10) as client:
        yield client


@pytest.fixture
def eventually():
    """Poll an async condition until it is truthy, and return what it returned."""

    async def poll(condition, within_s=5.0):
        deadline = monotonic() + within_s
        while True:
            value = await condition()
            if value:
                return value
            assert monotonic() < deadline, f"still {value!r} after {within_s} s"
            await asyncio.sleep(0.002)

    return poll


@pytest.fixture
def record_of():
    """The journal's closed record of one rid, or None."""

    async def find(url, rid):
        async with httpx.AsyncClient(base_url=url) as client:
            found = (await client.get("/_sim/requests")).json()
        return next((record for record in found["recent"] if record["rid"] == rid), None)

    return find
