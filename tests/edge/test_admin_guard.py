"""Who is let in: the token, requests across origins, rebound host names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from adminkit import serve

from router.edge.admin import is_loopback
from router.edge.admin_guard import refusal
from router.edge.admin_http import AdminCall

TOKEN = "correct horse"


def call(method="GET", path="/metrics", authority="127.0.0.1:9", *, authorization=b"", origin=None, loopback=True):
    headers = {} if origin is None else {b"origin": origin}
    return AdminCall(method, path, {}, authority, authorization, headers, b"", loopback)


async def test_a_token_is_asked_for_everywhere_but_at_the_probes():
    async with serve(token=TOKEN) as admin, admin.client() as client:
        for path in ("/livez", "/readyz", "/health", "/healthz"):
            assert (await client.get(path)).status_code == 200
        for method, path in (("GET", "/"), ("GET", "/metrics"), ("POST", "/workers"), ("GET", "/nothing")):
            response = await client.request(method, path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["type"] == "authentication_error"
        for wrong in ("Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer {TOKEN}x"):
            assert (await client.get("/metrics", headers={"authorization": wrong})).status_code == 401
        for right in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            assert (await client.get("/metrics", headers={"authorization": right})).status_code == 200
        assert not admin.source.told


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", ""])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/drain_listeners"), ("POST", "/workers"), ("DELETE", "/workers/a:1")]
)
async def test_a_mutation_from_another_origin_is_refused(method, path, origin):
    async with serve() as admin, admin.client() as client:
        response = await client.request(method, path, headers={"origin": origin})
        assert response.status_code == 403
        assert response.json()["error"]["type"] == "permission_error"
        assert not admin.source.told


async def test_the_own_origin_may_mutate_and_others_may_read():
    async with serve() as admin, admin.client() as client:
        assert (await client.post("/healthcheck/fail", headers={"origin": admin.url})).status_code == 200
        tls_before_us = admin.url.replace("http:", "https:")
        assert (await client.post("/healthcheck/ok", headers={"origin": tls_before_us})).status_code == 200
        assert (await client.get("/livez", headers={"origin": "http://evil.example"})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil", "a:b:c"]
)
async def test_a_name_on_a_loopback_listener_without_a_token_is_refused(host):
    async with serve() as admin:
        answer = await admin.raw(b"GET /livez HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % host.encode())
        assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
    async with serve(token=TOKEN) as admin, admin.client() as client:
        headers = {"host": "evil.example", "authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/metrics", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:80", "[::1]:80", "[::1]", "10.0.0.7:1", "localhost", "LOCALHOST:1", ""]
)
async def test_addresses_and_localhost_are_let_in(host):
    async with serve() as admin:
        answer = await admin.raw(b"GET /livez HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % host.encode())
        assert answer.endswith(b"ok\n")


async def test_http_1_0_without_a_host_is_let_in():
    async with serve() as admin:
        assert (await admin.raw(b"GET /livez HTTP/1.0\r\n\r\n")).endswith(b"ok\n")


def test_only_loopback_connections_are_checked_for_names():
    assert refusal(call(authority="router.internal"), b"").status == 403
    assert refusal(call(authority="router.internal", loopback=False), b"") is None
    assert refusal(call(authority="router.internal", authorization=b"Bearer t"), b"t") is None


@pytest.mark.parametrize(
    ("sockname", "expected"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.8.8", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("10.0.0.1", 1), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        ("/run/admin.sock", False),
        ("", False),
        (None, False),
    ],
)
def test_is_loopback(sockname, expected):
    assert is_loopback(sockname) is expected
