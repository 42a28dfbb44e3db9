"""The other side's clock: whose measurement is believed, which answers are none."""

from router.transport.codec.quic.varint import MAX_VARINT, Cursor, varint
from router.transport.codec.robot.control import Pong
from router.transport.codec.robot.limits import MAX_PINGS
from router.transport.codec.robot.peer_clock import PeerClock

AHEAD_US = 5_000_000


def exchange(clock, at_us, there_us, back_us):
    """One PING whose way there and back takes so long; return the round trip."""
    number = clock.ask(at_us)
    arrived = at_us + there_us + AHEAD_US
    return clock.learn(Pong(number, at_us, arrived, arrived + 40), at_us + there_us + 40 + back_us)


def test_the_shortest_round_trip_of_the_last_sixteen_is_believed():
    clock = PeerClock()
    assert not clock.is_known
    assert exchange(clock, 0, 90_000, 1_000) == 91_000  # a queue on the way there
    assert clock.offset_us == AHEAD_US + 44_500
    exchange(clock, 1_000_000, 1_000, 1_000)
    assert clock.offset_us == AHEAD_US
    for k in range(2, MAX_PINGS + 1):
        exchange(clock, k * 1_000_000, 1_000, 31_000)
        assert clock.offset_us == AHEAD_US
    exchange(clock, 99_000_000, 1_000, 31_000)
    assert clock.offset_us == AHEAD_US - 15_000


def test_answers_to_other_questions_are_none():
    clock = PeerClock()
    numbers = [clock.ask(k) for k in range(MAX_PINGS + 1)]
    assert clock.learn(Pong(numbers[0], 0, 1, 1), 2) == -1  # forgotten
    assert clock.learn(Pong(numbers[1], 7, 1, 1), 2) == -1  # another time
    assert clock.learn(Pong(numbers[2], 2, 1, 1), 5) == 3
    assert clock.learn(Pong(numbers[2], 2, 1, 1), 5) == -1  # again
    assert clock.is_known


def test_deadlines_are_of_the_others_clock():
    clock = PeerClock()
    assert not clock.is_late(1, 10)
    exchange(clock, 0, 10, 10)
    assert clock.is_late(AHEAD_US + 999, 1_000)
    assert not clock.is_late(AHEAD_US + 1_000, 1_000)
    assert not clock.is_late(0, 1_000)


def test_a_deadline_of_ours_is_an_integer_of_the_wire():
    """A robot may answer PINGs with any clock and name any time: with its own offset the sum is beyond both."""
    clock = PeerClock()
    clock.learn(Pong(clock.ask(10**15), 10**15, 0, 0), 10**15)
    ours = clock.to_ours(MAX_VARINT)
    assert Cursor(varint(ours), 0, 8).varint() == ours == MAX_VARINT
