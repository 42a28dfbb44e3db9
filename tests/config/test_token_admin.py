"""Tokens in the store: a secret is told once and is nowhere else, and what cannot be used is refused."""

import base64
import hashlib

import pytest
from configkit import Store, refused, snapshot

from router.config.timestamps import parse_timestamp
from router.config.token_admin import change_token, create_token, token_hash, tokens


@pytest.fixture
async def writer(store):
    async with store.writer() as writer:
        yield writer


async def test_a_token_is_shown_once_and_kept_as_a_hash(store, writer):
    made = await create_token(writer, "team: a", "prod", ("endpoint:chat", "endpoint:embed"), "2030-01-31T00:00:00Z")
    key, secret = made["key"], made["secret"]
    assert key.startswith("wk-")
    assert secret.startswith("ws-")
    assert len(secret) > 40
    hashed = hashlib.sha256(f"{key}.{secret}".encode()).digest()
    assert token_hash(key, secret) == hashed
    rows = (await snapshot(store.target))["AuthTokens"]
    assert list(rows) == [(base64.b64encode(hashed).decode(),)]
    assert secret not in repr(rows)
    (listed,) = await tokens(writer)
    assert (listed["key"], listed["subject"], listed["environment"], listed["scopes"]) == (key, "team: a", "prod", ["endpoint:chat", "endpoint:embed"])
    assert parse_timestamp(listed["not_after"]) == parse_timestamp("2030-01-31T00:00:00Z")
    assert listed["revoked_at"] is None
    assert "secret" not in listed
    assert secret not in repr(await tokens(writer, key))
    await change_token(writer, key, delete=False)
    assert parse_timestamp((await tokens(writer, key))[0]["revoked_at"]) > 0
    await change_token(writer, key, delete=True)
    assert await tokens(writer) == []
    await refused(change_token(writer, key, delete=True), "is not there")


async def test_two_tokens_are_two_secrets(writer):
    made = [await create_token(writer, "s", "main", (), None) for _ in range(5)]
    assert len({m["secret"] for m in made}) == len({m["key"] for m in made}) == 5
    assert len(await tokens(writer)) == 5


@pytest.mark.parametrize("text", ["tomorrow", "2030-01-31", "2030-13-31T00:00:00Z", "2030-01-31T00:00:00+01:00"])
async def test_an_end_that_is_no_time_is_refused(writer, text):
    await refused(create_token(writer, "s", "main", (), text), "--not-after", "2027-01-31")


async def test_a_subject_that_is_too_long_is_refused_in_words(writer):
    await refused(create_token(writer, "s" * 200, "main", (), None), "Subject")


async def test_secrets_are_not_in_the_files_of_the_store(folder):
    place = folder / "p"
    place.mkdir()
    store = await Store(place, place / "data").start()
    async with store.writer() as writer:
        made = await create_token(writer, "someone", "main", (), None)
    during = b"".join(file.read_bytes() for file in place.rglob("*") if file.is_file())
    await store.stop()
    after = b"".join(file.read_bytes() for file in place.rglob("*") if file.is_file())
    for data in (during, after):
        assert b"someone" in data
        assert made["secret"].encode() not in data
        assert made["secret"][3:].encode() not in data
