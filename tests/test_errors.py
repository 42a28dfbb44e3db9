"""The error table is total, and its rows are what the wire can carry."""

import pytest

from router.errors import WIRE, Kind, ProxyError, Source
from router.local_reply import _MESSAGES, error_body, error_event, local_reply


def test_the_table_is_total():
    assert set(WIRE) == set(Kind)
    assert set(_MESSAGES) == set(Kind)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)
def test_a_row_is_sendable(kind):
    wire = WIRE[kind]
    assert 400 <= wire.status < 600
    assert 1 <= wire.grpc <= 16
    assert wire.flag.isupper()
    assert 1000 <= wire.close_code < 1016
    assert 0 <= wire.h2 <= 13
    assert 0x100 <= wire.h3 <= 0x110


@pytest.mark.parametrize(
    ("kind", "status", "flag"),
    [
        (Kind.NO_ROUTE, 404, "NR"),
        (Kind.NO_REPLICA, 503, "UH"),
        (Kind.AT_CAPACITY, 503, "UO"),
        (Kind.CONNECT_FAILED, 503, "UF"),
        (Kind.UPSTREAM_CLOSED, 502, "UC"),
        (Kind.UPSTREAM_RESET, 502, "UR"),
        (Kind.UPSTREAM_PROTOCOL, 502, "UPE"),
        (Kind.FIRST_BYTE_TIMEOUT, 504, "UT"),
        (Kind.IDLE_TIMEOUT, 504, "SI"),
        (Kind.DEADLINE, 504, "DT"),
        (Kind.CLIENT_GONE, 499, "DC"),
        (Kind.BAD_REQUEST, 400, "DPE"),
        (Kind.HEAD_TOO_LARGE, 431, "DPE"),
        (Kind.BODY_TOO_LARGE, 413, "DPE"),
        (Kind.UNAUTHENTICATED, 401, "UAEX"),
        (Kind.DRAINING, 503, "LR"),
    ],
)
def test_status_and_flag_as_specified(kind, status, flag):
    assert (WIRE[kind].status, WIRE[kind].flag) == (status, flag)


def test_a_local_reply_says_what_a_client_needs():
    head, body = local_reply(ProxyError(Kind.NO_REPLICA, Source.ROUTER), b"no", b"id-1")
    fields = dict(head.shape.fields)
    assert head.shape.status == 503
    assert head.length == len(body)
    assert fields[b"x-router-error"] == b"no_replica"
    assert fields[b"x-router-upstream-reached"] == b"no"
    assert fields[b"x-request-id"] == b"id-1"
    assert fields[b"retry-after"] == b"1"
    assert body.startswith(b'{"error":{"type":"server_error","code":"no_replica"')


def test_details_are_part_of_the_message():
    assert b"malformed: no host." in error_body(ProxyError(Kind.BAD_REQUEST, Source.DOWNSTREAM, detail="no host"))


@pytest.mark.parametrize("last", [b"", b"data: x\n\n", b"data: x\r\n\r\n"])
def test_an_error_event_follows_whole_events_directly(last):
    assert error_event(ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM), last).startswith(b"event: error\ndata: {")


def test_an_error_event_ends_a_torn_event_first():
    event = error_event(ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM), b"data: x\n")
    assert event.startswith(b"\n\nevent: error\n")
