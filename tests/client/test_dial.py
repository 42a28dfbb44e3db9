"""Which connections are tried for a session, in which order, and what they show of it."""

import pytest

from router.client import dial
from router.client.dial import ADDRESS_S, FALLBACK_S, Dialler
from router.client.quic_carrier import QuicCarrier
from router.client.session import RobotSession
from router.client.target import read_target
from router.client.waiting import Waiting
from router.client.websocket_carrier import WebSocketCarrier
from router.client.words import RobotError
from router.transport.codec.robot import wire

pytestmark = pytest.mark.asyncio

PLACES = [(2, (f"127.0.0.{number}", 9)) for number in range(1, 5)]
BY_UDP = [number * ADDRESS_S for number in range(4)]


@pytest.fixture
def races(monkeypatch):
    """The runners of each race; none of them is started."""
    found = []

    async def find_places(target):
        return PLACES

    async def race(runners):
        found.append(runners)
        raise RobotError(wire.NOT_ALLOWED, "enough")

    monkeypatch.setattr(dial, "find_places", find_places)
    monkeypatch.setattr(dial, "race", race)
    return found


def dialler(transport="auto", websocket_url=None, **options):
    target = read_target(
        "quic://router.test/", token=None, headers=(), ca=None, verify=True, replies="state", websocket_url=websocket_url,
        server_name=None,
    )  # fmt: skip
    return Dialler(target, transport, **{"silence_s": 5.0, "ping_every_s": None, **options})


@pytest.mark.parametrize("options", [{"silence_s": 0.0}, {"silence_s": -1.0}, {"ping_every_s": 0.0}, {"silence_s": float("nan")}])
async def test_times_are_above_nothing(options):
    with pytest.raises(ValueError, match="above 0"):
        dialler(**options)


@pytest.mark.parametrize(
    ("transport", "url", "delays"),
    [
        ("auto", None, sorted([*BY_UDP, FALLBACK_S])), ("auto", "", BY_UDP), ("quic", None, BY_UDP), ("websocket", None, [0.0]),
    ],
)  # fmt: skip
async def test_each_address_has_its_turn_and_a_websocket_is_behind_the_first_ones(races, transport, url, delays):
    with pytest.raises(RobotError, match="enough"):
        await dialler(transport, url).dial("", Waiting())
    (runners,) = races
    assert [delay_s for delay_s, _ in runners] == delays
    kinds = [type(make()) for _, make in runners]
    assert kinds.count(WebSocketCarrier) == (url is None and transport != "quic")
    assert kinds.count(QuicCarrier) == (0 if transport == "websocket" else 4)


async def test_who_is_tried_later_takes_the_state_message_of_then(races):
    waiting = Waiting()
    with pytest.raises(RobotError, match="enough"):
        await dialler("quic").dial("", waiting)
    (_, first), (_, second), *_ = races[0]
    waiting.put_state(b"old", 0)
    assert first()._early == (b"old", 0)
    waiting.put_state(b"new", 0)
    early = second()
    assert early._early is waiting.state


async def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match="auto, quic or websocket"):
        dialler("tcp")
    with pytest.raises(ValueError, match="no WebSocket URL"):
        dialler("websocket", "")


async def test_carriers_of_one_race_are_one_attempt(races):
    """They show the same token: by the attempt the router tells them from a client that has come again."""
    for resume in ("t", "t", ""):
        with pytest.raises(RobotError, match="enough"):
            await RobotSession("quic://router.test/", websocket_url="", resume=resume).connect()
    hellos = [[make()._hello for _, make in runners] for runners in races]
    first, second, new = [[(one.resume, one.attempt) for one in found] for found in hellos]
    assert first[0] == first[1] != second[0] == second[1]
    assert first[0][0] == second[0][0] == "t"
    assert len(first[0][1]) == 18 and first[0][1].endswith(".1")
    assert new == [("", "")] * 4
