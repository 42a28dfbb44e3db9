"""Who may come to a replica without the router, and for how long its NAT is held open."""

import asyncio

import pytest
import pytest_asyncio

from router.continuity import Continuity
from router.edge import direct_robots
from router.edge.direct_robots import MAX_CHECKED, DirectRobots, TicketGate
from router.errors import Kind
from router.http import RequestHead, RequestShape
from router.routing.credentials import ANYBODY
from router.transport.codec.attach.control import Punch
from router.transport.codec.punch import Checks

pytestmark = pytest.mark.asyncio
PLACE = ("192.0.2.1", 9)


class FakeGate:
    def check(self, *asked):
        return "the other gate's"

    check_session = admit = check


@pytest_asyncio.fixture
async def robots(monkeypatch):
    monkeypatch.setattr(direct_robots, "CHECKS_S", 0.12)
    robots = DirectRobots(lambda data, address: robots.sent.append((data, address)))
    robots.sent = []
    yield robots
    await asyncio.sleep(0.2)  # the last of its timers
    assert not robots._checks


def punch(n=1):
    return Punch(n, f"user{n}", b"k" * 32, f"the ticket of robot {n}", [])


def head(version, ticket=b"", continuity=None):
    shape = RequestShape(b"GET", b"/", b"h")
    shape.version = version
    if ticket:
        shape.known = {b"x-router-key": ticket}
    made = RequestHead(shape)
    made.continuity = continuity
    return made


def verdict(robots, version, ticket=b"", continuity=None):
    asked = head(version, ticket, continuity or Continuity())
    return TicketGate(FakeGate(), robots).check(asked, None, None, 0.0)


async def test_the_nat_is_held_open_for_a_while(robots):
    assert robots.expect(punch(), [PLACE])
    await asyncio.sleep(0.3)
    count = len(robots.sent)
    assert 2 <= count <= 4
    assert {address for _, address in robots.sent} == {PLACE}


async def test_a_robots_check_is_answered_while_it_is_expected(robots):
    robots.expect(punch(), [("192.0.2.99", 9)])
    ((request, _),) = Checks(b"user1", b"k" * 32, [PLACE]).due()
    assert robots.take_check(b"user1", request, PLACE)
    assert robots.take_check(b"user2", request, PLACE) == b""
    await asyncio.sleep(0.2)
    assert robots.take_check(b"user1", request, PLACE) == b""


async def test_tickets(robots):
    robots.expect(punch(), [])
    for version in (b"ROBOT/1", b"HTTP/3"):
        for wrong in (b"", b"the ticket of robot 2", b"the ticket of robot 1 "):
            assert verdict(robots, version, wrong).kind is Kind.UNAUTHENTICATED
    for version in (b"HTTP/3", b"HTTP/4", b"PORTAL"):  # a robot was announced, and nothing else
        assert verdict(robots, version, b"the ticket of robot 1").kind is Kind.UNAUTHENTICATED
    assert verdict(robots, b"ROBOT/1", b"the ticket of robot 1") is ANYBODY


async def test_a_ticket_is_good_for_one_session(robots, monkeypatch):
    """However long that lasts; who was revoked meanwhile gets no other out of it."""
    robots.expect(punch(), [])
    session, ticket = Continuity(), b"the ticket of robot 1"
    assert verdict(robots, b"ROBOT/1", ticket, session) is ANYBODY
    monkeypatch.setattr(robots._loop, "time", lambda now=robots._loop.time: now() + 1e6)
    assert verdict(robots, b"ROBOT/1", ticket, session) is ANYBODY  # another WebSocket, or the next POST
    assert verdict(robots, b"ROBOT/1", ticket, Continuity()).kind is Kind.UNAUTHENTICATED
    assert verdict(robots, b"ROBOT/1", ticket, session) is ANYBODY


async def test_a_request_of_no_session_shows_no_ticket(robots):
    robots.expect(punch(), [])
    without = head(b"ROBOT/1", b"the ticket of robot 1")
    assert TicketGate(FakeGate(), robots).check(without, None, None, 0.0).kind is Kind.UNAUTHENTICATED


async def test_a_router_that_comes_for_its_robots_is_sent_nothing(robots):
    assert all(robots.expect(punch(n), []) for n in range(2 * MAX_CHECKED))
    assert not robots.sent
    assert verdict(robots, b"ROBOT/1", b"the ticket of robot 100") is ANYBODY


async def test_a_ticket_that_comes_too_late(robots, monkeypatch):
    monkeypatch.setattr(direct_robots, "TICKET_S", -1.0)
    robots.expect(punch(), [])
    assert verdict(robots, b"ROBOT/1", b"the ticket of robot 1").kind is Kind.UNAUTHENTICATED


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2"])
async def test_what_the_router_forwards_is_the_other_gates(robots, version):
    assert verdict(robots, version) == "the other gate's"


async def test_robots_are_bounded(robots, monkeypatch):
    monkeypatch.setattr(direct_robots, "MAX_TICKETS", 3)
    assert all(robots.expect(punch(n), [PLACE]) for n in range(MAX_CHECKED))
    assert not robots.expect(punch(MAX_CHECKED), [PLACE])
    assert robots.expect(punch(MAX_CHECKED + 1), []), "nothing is to be opened for it"
    assert verdict(robots, b"ROBOT/1", b"the ticket of robot 0").kind is Kind.UNAUTHENTICATED  # the oldest went
    assert verdict(robots, b"ROBOT/1", b"the ticket of robot 63") is ANYBODY


@pytest.mark.parametrize(
    "more",
    [{"user": ""}, {"user": "u" * 509}, {"key": b""}, {"key": b"k" * 15}, {"ticket": ""}, {"ticket": "t" * 15}],
    ids=str,
)
async def test_a_robot_that_cannot_be_told_from_others_is_not_let_in(robots, more):
    asked = {"user": "user1", "key": b"k" * 32, "ticket": "the ticket of robot 1", **more}
    assert not robots.expect(Punch(1, places=[], **asked), [PLACE])
    assert not robots.sent
    assert verdict(robots, b"ROBOT/1", asked["ticket"].encode()).kind is Kind.UNAUTHENTICATED


async def test_the_same_robot_again_sends_no_more(robots, caplog):
    """A router that repeats itself: each time would begin another series of checks."""
    assert robots.expect(punch(), [PLACE])
    assert not any(robots.expect(punch(), [PLACE]) for _ in range(100))
    assert len(robots.sent) == 1
    await asyncio.sleep(0.3)
    assert len(robots.sent) <= 4
    assert not caplog.records


async def test_checks_are_bounded(robots, monkeypatch):
    monkeypatch.setattr(direct_robots, "CHECK_S", 0.001)
    before = asyncio.get_running_loop().time()
    for n in range(MAX_CHECKED):
        robots.expect(punch(n), [(f"192.0.2.{place}", 9) for place in range(1, 9)])
    await asyncio.sleep(0.2)
    took_s = asyncio.get_running_loop().time() - before
    assert direct_robots.CHECKS_BURST <= len(robots.sent) <= direct_robots.CHECKS_BURST + direct_robots.CHECKS_RATE * took_s
