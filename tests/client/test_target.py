"""URLs and options of a session: what is taken, what is refused and how it says so. And what is remembered."""

import types

import pytest

from router.client.memory import MAX_SERVERS, MAX_TICKETS, Memory
from router.client.target import read_target
from router.client.words import RobotError
from tests.certkit import Authority


def read(url="quic://router.test:8443/policy?x=1", **more):
    options = {"token": None, "headers": (), "ca": None, "verify": True, "replies": "state", "websocket_url": None, "server_name": None}
    return read_target(url, **{**options, **more})


def test_the_parts():
    target = read(token="t", headers=[("X-Session-ID", "7")])
    assert (target.host, target.port, target.path) == ("router.test", 8443, "/policy?x=1")
    assert target.websocket_url == "wss://router.test:8443/policy?x=1"
    hello = target.hello("r")
    assert hello.authority == "router.test:8443"
    assert hello.headers == [("x-session-id", "7"), ("authorization", "Bearer t")]
    assert hello.resume == "r"
    assert read("quic://h").port == 443
    assert read("quic://h").hello("").authority == "h" and read("quic://h", authority="other").hello("").authority == "other"
    assert read("quic://[::1]:9/").host == "::1"


def test_a_replicas_own_authorization_is_left_to_it():
    assert read(token="t", headers=[("Authorization", "Api-Key k")]).headers == (("authorization", "Api-Key k"), ("x-router-key", "t"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "https://a/"}, "no quic://"),
        ({"url": "quic:///p"}, "no quic://"),
        ({"url": "quic://u:p@h/"}, "no quic://"),
        ({"url": "quic://h:99999/"}, "[Pp]ort"),
        ({"replies": "telemetry"}, "lane"),
        ({"websocket_url": "http://h"}, "ws://"),
        ({"headers": [("a", "b\r\nc: d")]}, "cannot be sent"),
        ({"headers": [("Host", "h")]}, "cannot be sent"),
        ({"authority": "a b"}, "no host"),
        ({"authority": "ä"}, "no host"),
        ({"headers": [("x", "y")] * 101}, "at most 100"),
        ({"url": "quic://h:0/"}, "no quic://"),
        ({"token": ""}, "token is empty"),
        ({"ca": b"no PEM"}, "no certificate"),
        ({"ca": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "no certificate"),
    ],
)
def test_what_is_wrong_is_said(options, says):
    with pytest.raises(ValueError, match=says):
        read(**options)


def test_an_authority_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(ca=tmp_path / "none.pem")
    pem = Authority().cert
    (tmp_path / "ca.pem").write_bytes("of the Maître d’œuvre\n".encode() + pem)
    found = read(ca=str(tmp_path / "ca.pem"))
    assert found.ca == pem.strip()
    assert found.tls().get_ca_certs(), "its comments are not ASCII, as ssl wants it"


def ticket(number, *, is_valid=True):
    return types.SimpleNamespace(number=number, is_valid=is_valid)


def test_tickets_are_for_one_use_and_for_who_vouched():
    memory = Memory()
    trust = read().trust
    assert trust != read(verify=False).trust
    assert trust != read(ca=Authority().cert).trust
    assert trust == read(path := "quic://router.test:8443/other").trust and path
    for number in range(MAX_TICKETS + 2):
        memory.add_ticket(trust, ticket(number))
    memory.add_token(trust, b"one")
    memory.add_token(trust, b"two")
    found, token = memory.take(trust)
    assert (found.number, token) == (MAX_TICKETS + 1, b"two")
    assert [memory.take(trust)[0].number for _ in range(MAX_TICKETS - 1)] == [4, 3, 2]
    assert memory.take(trust) == (None, b"")
    assert memory.take(read(verify=False).trust) == (None, b"")


def test_old_tickets_are_passed_over_and_servers_are_bounded():
    memory = Memory()
    memory.add_ticket(("a", 1, "a", ""), ticket(1))
    memory.add_ticket(("a", 1, "a", ""), ticket(2, is_valid=False))
    assert memory.take(("a", 1, "a", ""))[0].number == 1
    for number in range(MAX_SERVERS + 5):
        memory.add_token((str(number), 1, "a", ""), b"t")
    assert len(memory._servers) == MAX_SERVERS
    assert memory.take(("0", 1, "a", ""))[1] == b""
    assert memory.take((str(MAX_SERVERS + 4), 1, "a", ""))[1] == b"t"


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (RobotError(1008, ""), True),
        (RobotError(1002, ""), True),
        (RobotError(1000, ""), True),
        (RobotError(1011, ""), False),
        (RobotError(1012, ""), False),
        (RobotError(1006, ""), False),
        (RobotError(1008, "", 429), False),
        (RobotError(1011, "", 404), True),
        (RobotError(1013, "", 503), False),
    ],
)
def test_which_errors_are_final(error, is_final):
    assert error.is_final is is_final


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"token": "secret"}, []),
        ({"token": "secret", "headers": [("authorization", "Api-Key k")]}, [("authorization", "Api-Key k")]),
        ({"headers": [("authorization", "Api-Key k"), ("x-session-id", "7")]}, [("authorization", "Api-Key k"), ("x-session-id", "7")]),
        ({"headers": [("X-Router-Key", "secret"), ("x-router-session", "secret"), ("modal-secret", "secret")]}, []),
    ],
)
def test_a_replica_is_not_told_what_is_the_routers(options, left):
    met = read(**options).for_replica("ticket", b"pem", "localhost")
    assert met.hello("").headers == [*left, ("x-router-key", "ticket")]
    assert (met.server_name, met.ca, met.verify) == ("localhost", b"pem", True)
