"""Settings: what can only be checked together, what they make of a table, listening addresses."""

import socket

import pytest

from router.config.addresses import bind, is_loopback, parse_listen
from router.config.settings import Settings
from router.config.static import ConfigError
from router.routing.spec import HealthSpec, LimitSpec, TimeoutSpec

REPLICA = ["http://127.0.0.1:30000"]
FILE = '[[endpoint]]\nname = "e"\n[[endpoint.replica]]\naddress = "http://h:1"\n'


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::]:65535", ("::", 65535)),
        ("localhost:8080", ("localhost", 8080)),
    ],
)
def test_listen(address, parts):
    assert parse_listen(address, "--listen") == parts


@pytest.mark.parametrize(
    "address", ["", ":80", "80", "a", "a:", "a:b", "a:65536", "a:-1", "a:+1", "a:\u0661", "[]:80", "a:8 0"]
)
def test_bad_listen(address):
    with pytest.raises(ConfigError, match="^--admin: .* is not HOST:PORT$"):
        parse_listen(address, "--admin")


@pytest.mark.parametrize(("host", "is_local"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
    ("example.com", False), ("localhost.evil.example", False), ("::ffff:10.0.0.1", False),
])  # fmt: skip
def test_loopback(host, is_local):
    assert is_loopback(host) is is_local


class TestCheck:
    def check(self, **kwargs):
        Settings(**({"replica": REPLICA} | kwargs)).check()

    def refused(self, **kwargs):
        with pytest.raises(ConfigError) as refusal:
            self.check(**kwargs)
        return str(refusal.value)

    def test_the_default(self):
        self.check()

    def test_the_default_address_counts_where_nothing_else_is_listened_on(self):
        assert Settings().addresses() == ["127.0.0.1:8080"]
        assert Settings(listen=["[::1]:1"]).addresses() == ["[::1]:1"]
        assert Settings(listen_tls=["[::1]:1"]).addresses() == []

    @pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80", "10.0.0.1:80"])
    def test_an_open_router_listens_on_loopback(self, address):
        assert address in self.refused(listen=["127.0.0.1:1", address])
        self.check(listen=[address], auth_token=["t"])
        self.check(listen=[address], unauthenticated=True)

    @pytest.mark.parametrize("tokens", [[""], ["good", " "], ["\t"]])
    def test_an_empty_token_is_no_token(self, tokens):
        """`--auth-token "$UNSET"` must not open the router to everybody."""
        with pytest.raises(ConfigError, match="^--auth-token: a token is empty"):
            Settings(listen=["0.0.0.0:80"], replica=REPLICA, auth_token=tokens).check()

    def test_admin_beyond_loopback_needs_its_own_token(self):
        assert self.refused(admin="0.0.0.0:9901", auth_token=["t"]).startswith("--admin")
        self.check(admin="0.0.0.0:9901", admin_token="t")
        self.check(admin="none")
        self.check(admin="unix:/run/router.sock")

    @pytest.mark.parametrize("bad", ["127.0.0.1", "x", ":1"])
    def test_addresses(self, bad):
        assert self.refused(listen=[bad]).startswith("--listen")
        assert self.refused(admin=bad).startswith("--admin")

    def test_replicas_stand_in_one_place(self, tmp_path):
        path = tmp_path / "f.toml"
        path.write_text(FILE)
        self.check(replica=[], config=str(path))
        assert self.refused(config=str(path)).startswith("--replica")
        assert self.refused(replica=[]).startswith("--replica")
        path.write_text("[router]\nworkers = 1\n")
        assert self.refused(replica=[], config=str(path)).startswith("--replica")
        self.check(config=str(path))

    def test_demand_goes_to_a_store_that_takes_writes(self):
        assert self.refused(demand_store="relay://h:1").startswith("--demand-store")
        assert self.refused(demand_store="somewhere").startswith("--demand-store")
        self.check(demand_store="emulator://h:1")

    def test_a_file_that_is_not_there(self, tmp_path):
        assert "cannot be read" in self.refused(config=str(tmp_path / "none"))


    @pytest.mark.parametrize("where", ["no/such/folder/log", "."])
    def test_an_access_log_that_cannot_be_written(self, tmp_path, where):
        assert self.refused(access_log=str(tmp_path / where)).startswith("--access-log")
        self.check(access_log=str(tmp_path / "log"))
        self.check(access_log="-")


def test_the_table_of_the_flags():
    settings = Settings(
        replica=["http://a:1", "http://b:2"], policy="round_robin", health="http", health_path="/h", health_interval_s=3.0,
        connect_timeout_s=4.0, first_byte_timeout_s=5.0, request_timeout_s=6.0, idle_timeout_s=7.0, max_body_bytes=8, max_concurrency=9,
    )  # fmt: skip
    table = settings.table(3)
    (one,) = table.endpoints
    assert table.version == 3
    assert [replica.address for replica in one.replicas] == ["http://a:1", "http://b:2"]
    assert [replica.id for replica in one.replicas] == ["a:1", "b:2"]
    assert one.policy == "round_robin"
    assert one.health == HealthSpec(kind="http", path="/h", interval_s=3.0)
    assert one.timeouts == TimeoutSpec(4.0, 5.0, 6.0, 7.0)
    assert one.limits == LimitSpec(8, 9)
    assert [(route.host, route.path_prefix) for route in table.routes] == [("*", "/")]


def test_the_table_of_a_file(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text(FILE)
    assert Settings(config=str(path)).table(1).endpoints[0].name == "e"


def test_a_bad_replica_names_its_flag():
    with pytest.raises(ConfigError, match="^--replica: .*address"):
        Settings(replica=["h:1"]).table(1)


def test_limits_of_a_client():
    limits = Settings(head_timeout_s=1.0, keep_alive_s=2.0, idle_timeout_s=3.0, stall_timeout_s=4.0).server_limits()
    assert (limits.head_s, limits.keep_alive_s, limits.idle_s, limits.stall_s) == (1.0, 2.0, 3.0, 4.0)


def test_secrets_are_masked():
    shown = Settings(admin_token="s3cret", auth_token=["also"], replica=REPLICA).public()
    assert (shown["admin_token"], shown["auth_token"]) == ("***", "***")
    assert "s3cret" not in repr(shown)
    assert Settings().public()["admin_token"] == ""


class TestBind:
    @pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
    def test_any_free_port(self, host, family):
        try:
            with bind(host, 0, reuse_port=False) as sock:
                assert sock.family == family
                assert sock.getsockname()[1] > 0
        except OSError:
            assert family == socket.AF_INET6, "a host without IPv6"

    def test_shared_by_workers(self):
        with (
            bind("127.0.0.1", 0, reuse_port=True) as first,
            bind("127.0.0.1", first.getsockname()[1], reuse_port=True),
        ):
            pass

    def test_taken(self):
        with bind("127.0.0.1", 0, reuse_port=False) as first:
            first.listen()
            with pytest.raises(OSError, match="in use"):
                bind("127.0.0.1", first.getsockname()[1], reuse_port=False)
