"""Tokens: who is refused, and that the router's credential never reaches an engine."""

from __future__ import annotations

import pytest
import pytest_asyncio
import websockets
from websockets.asyncio.client import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN, OTHER = "correct-horse", "battery-staple"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(keep_router, engine):
    return await keep_router("--auth-token", TOKEN, "--auth-token", OTHER, replicas=[engine.url])


REFUSED = [
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": f"Bearer {TOKEN}x"},
    {"authorization": f"Basic {TOKEN}"},
    {"authorization": TOKEN},
    {"authorization": "Bearer"},
    {"x-router-key": "wrong"},
    {"x-router-key": ""},
    {"x-router-key": "wrong", "authorization": f"Bearer {TOKEN}"},
]


@pytest.mark.parametrize("headers", REFUSED, ids=range(len(REFUSED)))
async def test_refused(client, router, headers, request):
    name = f"refused-{request.node.callspec.indices['headers']}"
    response = await client.post(
        f"{router.url}/_sim/echo", content=b"hello", headers={**headers, "x-request-id": name}
    )
    assert response.status_code == 401
    assert response.headers["x-router-error"] == "unauthenticated"
    assert response.headers["x-router-upstream-reached"] == "no"
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["error"]["type"] == "authentication_error"
    record = await router.record(name)
    assert (record["status"], record["flags"], record["replica"]) == (401, "UAEX", "")
    await router.settled()


@pytest.mark.parametrize("token", [TOKEN, OTHER])
async def test_a_bearer_token_is_taken_out(client, router, token):
    response = await client.get(f"{router.url}/_sim/echo", headers={"authorization": f"Bearer {token}"})
    assert response.status_code == 200
    assert token not in response.text
    assert "authorization" not in [name.lower() for name, _ in response.json()["headers"]]


async def test_a_router_key_leaves_the_engines_credential(client, router):
    headers = {"x-router-key": TOKEN, "authorization": "Bearer sk-of-the-engine"}
    response = await client.get(f"{router.url}/_sim/echo", headers=headers)
    assert response.status_code == 200
    seen = {name.lower(): value for name, value in response.json()["headers"]}
    assert seen["authorization"] == "Bearer sk-of-the-engine"
    assert "x-router-key" not in seen and TOKEN not in response.text


async def test_a_websocket_needs_the_token(start_router, policy, client):
    router = await start_router("--auth-token", TOKEN, replicas=[policy.url])
    url = f"ws://127.0.0.1:{router.port}/echo?auth"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(url, proxy=None)
    assert refused.value.response.status_code == 401
    async with connect(url, proxy=None, additional_headers={"x-router-key": TOKEN}) as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"
    found = (await client.get(policy.url.replace("ws", "http", 1) + "/_sim/connections")).text
    assert "?auth" in found and TOKEN not in found


async def test_secrets_are_not_shown(router):
    for path in ("/config_dump", "/server_info", "/metrics", "/"):
        assert TOKEN not in (await router.ask(path)).text
    assert TOKEN not in router.stderr()


async def test_an_open_router_asks_for_nothing(client, start_router, engine):
    router = await start_router(replicas=[engine.url])
    headers = {"authorization": "Bearer sk-of-the-engine"}
    seen = (await client.get(f"{router.url}/_sim/echo", headers=headers)).json()["headers"]
    assert dict((name.lower(), value) for name, value in seen)["authorization"] == "Bearer sk-of-the-engine"


async def test_an_admin_token(start_router, engine):
    router = await start_router("--admin-token", "admin-secret", replicas=[engine.url])
    assert (await router.ask("/livez")).status_code == 200
    assert (await router.ask("/clusters")).status_code in (401, 403)
    with_token = {"authorization": "Bearer admin-secret"}
    assert (await router.ask("/clusters", headers=with_token)).status_code == 200
    assert "admin-secret" not in (await router.ask("/config_dump", headers=with_token)).text
