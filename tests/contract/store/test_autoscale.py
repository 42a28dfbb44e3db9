"""What the autoscaler writes and reads, on the embedded store and on Google's emulator: the schema, demand, sessions."""

import asyncio

import pytest

from router.autoscale.follow import Follower
from router.config.client import COMMIT_TIME
from router.config.demand import DemandPublisher
from router.config.duty import AUTOSCALER, leave_duty, take_duty
from router.config.schema import CLIENT_VERSION, MIGRATIONS
from router.config.setup import initialise
from router.config.target import Target, parse_target
from router.config.writer import open_writer
from router.demand import EndpointDemand

pytestmark = [pytest.mark.timeout(120)]
POLICY = '{"scaling": {"target_concurrency": 4}}'


def test_the_embedded_store(embedded):
    check(Target("embedded", embedded))


def test_the_emulator(oracle):
    if oracle is None:
        pytest.skip("the emulator is not installed")
    check(parse_target(f"emulator://{oracle}"))


def check(target):
    assert initialise(target, migrations=MIGRATIONS[:1]) == 1
    asyncio.run(put_endpoint(target))
    assert initialise(target) == CLIENT_VERSION
    asyncio.run(demand_and_sessions(target))


async def put_endpoint(target):
    async with open_writer(target) as writer:
        await writer.put_endpoint("e", create=True, policy=POLICY)
        for name in ("r0", "r1", "r2"):
            await writer.put_replica("e", name, create=True, address="h", port=1)


async def demand_and_sessions(target):
    demand = {"e": EndpointDemand(3, 10, 2, 1, 0)}

    async def read():
        return demand

    publisher = DemandPublisher(target, "me", "eu", read)
    columns = ("SessionId", "EndpointId", "ReplicaId", "State", "IdleTimeoutS", "LastUsedAt", "UpdatedAt")
    sessions = [
        ("live", "e", "r0", "OPEN", 600, COMMIT_TIME, COMMIT_TIME),
        ("ended", "e", "r1", "ENDED", 600, COMMIT_TIME, COMMIT_TIME),
        ("idle", "e", "r2", "OPEN", 5, "2020-01-01T00:00:00Z", COMMIT_TIME),
    ]
    follower = Follower(None)
    async with open_writer(target) as writer:
        await follower.check(writer)
        await writer.write([("insert", "Sessions", columns, sessions)])
        await publisher._check_schema(writer)
        await publisher._turn(writer)
        first = (await follower.read(writer))["e"]
        demand["e"] = EndpointDemand(4, 12, 3, 0, 0)
        await publisher._turn(writer)
        second = (await follower.read(writer))["e"]
        assert await writer.transact(lambda t: take_duty(t, AUTOSCALER, "me", 12.0)) == (True, True)
        assert await writer.transact(lambda t: take_duty(t, AUTOSCALER, "other", 12.0)) == (False, False)
        await writer.transact(lambda t: leave_duty(t, AUTOSCALER, "other"))
        assert await writer.transact(lambda t: take_duty(t, AUTOSCALER, "other", 12.0)) == (False, False)
        await writer.transact(lambda t: leave_duty(t, AUTOSCALER, "me"))
        assert await writer.transact(lambda t: take_duty(t, AUTOSCALER, "other", 12.0)) == (True, True)
        await publisher._withdraw()
        assert await writer.query("SELECT * FROM Demand") == []
    assert (first.in_flight, first.waiting, first.unserved, first.held) == (3, 1, 0, {"r0"})
    assert not first.is_blind and not second.is_blind
    assert first.replicas == {"r0": "READY", "r1": "READY", "r2": "READY"}
    assert (second.in_flight, second.arrivals, second.unserved) == (4, 2, 1)
