"""Checks of two sides that each answer the other, without sockets."""

import os

import pytest
from aioice import stun as ice

from router.transport.codec.punch import MAX_ANSWERS, MAX_PLACES, Checks, place_of
from router.transport.codec.stun import binding_request

A, B, C = ("192.0.2.1", 1000), ("192.0.2.2", 2000), ("192.0.2.3", 3000)
KEY = b"k" * 32


def test_the_first_place_that_answers_is_found():
    robot, replica = Checks(b"u", KEY, [C, B]), Checks(b"u", KEY, [A])
    for request, place in robot.due():
        if place == B:
            answer = replica.take(request, A)
            assert robot.take(answer, B) == b""
    assert robot.found == B
    assert replica.found is None


def test_an_answer_says_from_where_it_was_asked():
    robot, replica = Checks(b"u", KEY, [B]), Checks(b"u", KEY, [])
    (request, _), = robot.due()
    read = ice.parse_message(replica.take(request, A))
    assert read.attributes["XOR-MAPPED-ADDRESS"] == A


def test_who_has_another_key_or_name_is_not_answered():
    replica = Checks(b"u", KEY, [])
    for other in (Checks(b"u", b"x" * 32, [B]), Checks(b"v", KEY, [B])):
        ((request, _),) = other.due()
        assert replica.take(request, A) == b""
    assert replica.take(binding_request(os.urandom(12)), A) == b""
    assert [place for _, place in replica.due()] == []


def test_a_place_that_nobody_named_is_checked_too():
    robot, replica = Checks(b"u", KEY, [B]), Checks(b"u", KEY, [A])
    ((request, _),) = replica.due()
    robot.take(request, C)
    assert [place for _, place in robot.due()] == [B, C]


def test_only_what_was_asked_for_counts():
    robot, replica = Checks(b"u", KEY, [B]), Checks(b"u", KEY, [A])
    stranger = Checks(b"u", KEY, [B])
    ((request, _),) = stranger.due()
    robot.take(replica.take(request, A), B)
    assert robot.found is None
    for noise in (b"", b"\0" * 20, os.urandom(100), request[:-4], request + b"\0"):
        assert robot.take(noise, B) == b""


def test_places_are_bounded():
    robot = Checks(b"u", KEY, [("192.0.2.9", port) for port in range(1, 40)])
    assert len(robot.due()) == MAX_PLACES
    ((request, _),) = Checks(b"u", KEY, [A]).due()
    robot.take(request, C)
    assert len(robot.due()) == MAX_PLACES


@pytest.mark.parametrize(
    ("host", "v4", "v6"),
    [
        ("192.0.2.1", ("192.0.2.1", 9), ("::ffff:192.0.2.1", 9, 0, 0)),
        ("::ffff:192.0.2.1", ("192.0.2.1", 9), ("::ffff:192.0.2.1", 9, 0, 0)),
        ("2001:db8::1", None, ("2001:db8::1", 9, 0, 0)),
        *((host, None, None) for host in (
            "", "localhost", "192.0.2.1 ", "224.0.0.1", "::ffff:224.0.0.1", "ff02::1", "0.0.0.0", "::", "::ffff:0.0.0.0",
            "255.255.255.255", "127.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1%eth0", "fe80::1%" + "x" * 50,
        )),
    ],
)  # fmt: skip
def test_where_somebody_else_may_have_us_send(host, v4, v6):
    assert place_of(host, 9, is_v6=False, may_be_here=False) == v4
    assert place_of(host, 9, is_v6=True, may_be_here=False) == v6
    assert place_of(host, 0, is_v6=True, may_be_here=True) is None


def test_this_host_itself_where_it_may_be():
    assert place_of("127.0.0.1", 9, is_v6=False, may_be_here=True) == ("127.0.0.1", 9)
    assert place_of("::1", 9, is_v6=True, may_be_here=True) == ("::1", 9, 0, 0)


def test_answers_are_bounded():
    """Who has the key, and says to be where somebody else is."""
    robot, replica = Checks(b"u", KEY, [B]), Checks(b"u", KEY, [])
    ((request, _),) = robot.due()
    victims = [("198.51.100.1", port) for port in range(1, 2_000)]
    assert sum(bool(replica.take(request, victim)) for victim in victims) == MAX_ANSWERS
