"""Which store: one setting, five kinds."""

import pytest

from router.config.static import ConfigError
from router.config.target import DEFAULT_DATABASE, Target, default_socket, parse_target, state_dir

OTHER = "projects/proj/instances/inst/databases/data"


@pytest.mark.parametrize(
    ("text", "target", "is_secure"),
    [
        ("embedded:/run/s.sock", Target("embedded", "unix:/run/s.sock"), False),
        ("emulator://localhost:9010", Target("emulator", "localhost:9010"), False),
        ("emulator://localhost:9010/proj/inst/data", Target("emulator", "localhost:9010", OTHER), False),
        ("emulator://[::1]:9010", Target("emulator", "[::1]:9010"), False),
        ("spanner://proj/inst/data", Target("spanner", "spanner.googleapis.com:443", OTHER), True),
        ("omni://spanner.example:15000", Target("omni", "spanner.example:15000"), True),
        ("omni://localhost:15000", Target("omni", "localhost:15000"), False),
        ("omni://127.0.0.1:15000", Target("omni", "127.0.0.1:15000"), False),
        ("omni://[::1]:15000/proj/inst/data", Target("omni", "[::1]:15000", OTHER), False),
        ("relay://10.0.0.1:7000", Target("relay", "10.0.0.1:7000"), False),
        ("relay:/run/r.sock", Target("relay", "unix:/run/r.sock"), False),
    ],
)
def test_each_kind(text, target, is_secure):
    found = parse_target(text)
    assert found == target
    assert found.is_secure is is_secure
    assert found.database.split("/")[1] == found.project
    assert found.database.split("/")[3] == found.instance
    assert found.address in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "", "embeded", "spanner", "spanner://", "spanner://p/i", "spanner://p/i/d/x", "spanner://P/inst/data", "spanner:p/i/d",
        "emulator://", "emulator://localhost", "emulator://localhost:0", "emulator://localhost:65536", "emulator://localhost:x",
        "emulator://a b:1", "emulator://user@host:1", "emulator://host:1/proj", "emulator://host:1/proj/inst",
        "omni:15000", "relay:relative", "relay://", "relay:", "http://host:1", "embedded://host:1", "embedded:/" + "x" * 120,
        "emulator://localhost:9010\n", "emulator://localhost:\u0661\u0662", "sqlite:/x",
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_what_it_should_be(text):
    with pytest.raises(ConfigError) as refused:
        parse_target(text, flag="--follow")
    assert str(refused.value).startswith("--follow: ")


def test_the_default_socket_is_below_the_state_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_dir() == tmp_path / "router"
    assert default_socket() == tmp_path / "router" / "store" / "store.sock"
    assert parse_target("embedded").address == f"unix:{default_socket()}"
    assert parse_target("embedded", "/elsewhere").address == "unix:/elsewhere/store/store.sock"
    assert parse_target("embedded:/own.sock", "/elsewhere").address == "unix:/own.sock"


def test_files_of_two_stores_do_not_meet():
    texts = [
        "embedded:/a", "embedded:/b", "relay:/a", "emulator://h:1", "emulator://h:1/proj/inst/data", "omni://h:1",
        "spanner://proj/inst/data", "spanner://proj/inst/other",
    ]  # fmt: skip
    keys = [parse_target(text).key for text in texts]
    assert len(set(keys)) == len(keys)
    assert all(key.replace("-", "").isalnum() for key in keys)
    assert parse_target(texts[0]).key == keys[0]
    assert parse_target("emulator://h:1").database == DEFAULT_DATABASE
