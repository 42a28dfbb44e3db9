"""Every setting is a flag, an environment variable and a key of the file; flag > environment > file > default."""

import json
import tempfile
from pathlib import Path

import click
import msgspec
import pytest
from certkit import Authority
from click.testing import CliRunner

from router.cli import main
from router.cli.options import env_name, make_settings, settings_options
from router.config.settings import Settings

FIELDS = Settings.__struct_fields__
REPLICA = "http://127.0.0.1:30000"

FOLDER = tempfile.TemporaryDirectory()
PEM = [f"{FOLDER.name}/{name}" for name in ("a.pem", "b.pem", "a.key", "b.key", "ca.pem")]

# For each setting two values that are not its default: as text, and as it is then.
VALUES = {
    "listen": (("127.0.0.1:1", ["127.0.0.1:1"]), ("127.0.0.1:2", ["127.0.0.1:2"])),
    "replica": (("http://a:1", ["http://a:1"]), ("http://b:1", ["http://b:1"])),
    "store": (("embedded", "embedded"), ("relay://h:1", "relay://h:1")),
    "demand_store": (("embedded", "embedded"), ("emulator://h:1", "emulator://h:1")),
    "shrink_guard": (("0.25", 0.25), ("1", 1.0)),
    "admin": (("none", "none"), ("unix:/x", "unix:/x")),
    "admin_token": (("t", "t"), ("u", "u")),
    "auth_token": (("t", ["t"]), ("u", ["u"])),
    "unauthenticated": (("true", True), ("true", True)),
    "reaper": (("true", True), ("true", True)),
    "engine": (("sglang", "sglang"), ("any", "any")),
    "policy": (("random", "random"), ("round_robin", "round_robin")),
    "health": (("none", "none"), ("http", "http")),
    "health_path": (("/a", "/a"), ("/b", "/b")),
    "access_log": (("/dev/null", "/dev/null"), ("-", "-")),
    "access_log_sample": (("0.5", 0.5), ("0.25", 0.25)),
    "log_level": (("DEBUG", "DEBUG"), ("ERROR", "ERROR")),
    "json": (("true", True), ("true", True)),
    "listen_tls": (("127.0.0.1:1", ["127.0.0.1:1"]), ("127.0.0.1:2", ["127.0.0.1:2"])),
    "listen_quic": (("127.0.0.1:1", ["127.0.0.1:1"]), ("127.0.0.1:2", ["127.0.0.1:2"])),
    "may_attach": (("a=t", ["a=t"]), ("b=u", ["b=u"])),
    "quic_portal": (("policy.test/infer", "policy.test/infer"), ("b.test", "b.test")),
    "robot_telemetry": (("udp://127.0.0.1:1", "udp://127.0.0.1:1"), ("unix:/x", "unix:/x")),
    "tls_cert": ((PEM[0], [PEM[0]]), (PEM[1], [PEM[1]])),
    "tls_key": ((PEM[2], [PEM[2]]), (PEM[3], [PEM[3]])),
    "tls_client_ca": ((PEM[4], PEM[4]), (PEM[4], PEM[4])),
    "tls_min_version": (("1.3", "1.3"), ("1.2", "1.2")),
    "proxy_protocol": (("true", True), ("true", True)),
    "proxy_protocol_from": (("10.0.0.0/8", ["10.0.0.0/8"]), ("::1", ["::1"])),
    "upstream_ca": ((PEM[4], PEM[4]), (PEM[0], PEM[0])),
    "upstream_cert": ((PEM[0], PEM[0]), (PEM[1], PEM[1])),
    "upstream_key": ((PEM[2], PEM[2]), (PEM[3], PEM[3])),
    "upstream_server_name": (("a.test", "a.test"), ("b.test", "b.test")),
    "upstream_insecure": (("true", True), ("true", True)),
}
TLS = ["--listen-tls", "127.0.0.1:1", "--tls-cert", PEM[0], "--tls-key", PEM[2]]
HTTPS = ["--replica", "https://a:1"]
# What a setting makes no sense without. Both pairs share a key, so that either half may change alone.
BESIDE = {
    "listen_tls": TLS[2:], "listen_quic": TLS[2:], "quic_portal": ["--listen-quic", "127.0.0.1:1", *TLS[2:]], "robot_telemetry": ["--listen-quic", "127.0.0.1:1", *TLS[2:]], "may_attach": ["--listen-quic", "127.0.0.1:1", *TLS[2:]], "tls_cert": TLS[:2] + TLS[4:], "tls_key": TLS[:4], "tls_client_ca": TLS, "proxy_protocol_from": ["--proxy-protocol"],
    "upstream_ca": HTTPS, "upstream_cert": [*HTTPS, "--upstream-key", PEM[2]], "upstream_key": [*HTTPS, "--upstream-cert", PEM[0]],
    "upstream_server_name": HTTPS, "upstream_insecure": HTTPS,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def files():
    authority = Authority()
    pair = authority.sign("localhost")
    for path, data in zip(PEM, (pair.cert, pair.cert, pair.key, pair.key, authority.cert), strict=True):
        Path(path).write_bytes(data)
    yield
    FOLDER.cleanup()


def values_of(name):
    if name in VALUES:
        return VALUES[name]
    kind = type(getattr(Settings(), name))
    return (("3", kind(3)), ("4", kind(4)))


@click.command()
@settings_options
def probe(**values):
    settings = make_settings(values)
    click.echo(json.dumps(msgspec.to_builtins(settings)))


def run(args=(), env=None, command=probe):
    return CliRunner().invoke(command, list(args), env=env or {})


def settings_of(*args, env=None, needs_replica=True):
    result = run([*args, *(["--replica", REPLICA] if needs_replica else [])], env)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def as_args(name, text):
    flag = "--" + name.replace("_", "-")
    return [flag] if isinstance(getattr(Settings(), name), bool) else [flag, text]


def as_toml(name, value):
    return f"{name} = {json.dumps(value)}\n"


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "router.toml"
        path.write_text("[router]\n" + text)
        return str(path)

    return write


def test_flags_and_settings_are_the_same_set():
    flags = {param.name for param in probe.params}
    assert flags == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_has_its_flag_its_variable_and_its_help(name):
    (param,) = [param for param in probe.params if param.name == name]
    assert "--" + name.replace("_", "-") in param.opts
    assert param.envvar == env_name(name.replace("_", "-")) == "ROUTER_" + name.upper()
    assert param.help


def test_the_defaults_are_those_of_settings():
    assert settings_of() == msgspec.to_builtins(Settings(replica=[REPLICA]))


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "config"])
def test_flag_beats_environment_beats_file_beats_default(name, file):
    (flag_text, flag_value), (env_text, env_value) = values_of(name)
    needs = name not in ("replica", "store")
    env = {env_name(name.replace("_", "-")): env_text}
    beside = BESIDE.get(name, [])
    in_file = ["--config", file(as_toml(name, flag_value)), *beside]
    default = getattr(Settings(), name)
    if needs and not beside:
        assert settings_of()[name] == default
    assert settings_of(*in_file, needs_replica=needs)[name] == flag_value
    assert settings_of(*in_file, env=env, needs_replica=needs)[name] == env_value
    assert settings_of(*in_file, *as_args(name, flag_text), env=env, needs_replica=needs)[name] == flag_value
    assert settings_of(*beside, env=env, needs_replica=needs)[name] == env_value


def test_a_switch_can_be_turned_off_again(file):
    path = file("unauthenticated = true\n")
    assert settings_of("--config", path)["unauthenticated"] is True
    assert settings_of("--config", path, "--no-unauthenticated")["unauthenticated"] is False
    assert settings_of("--config", path, env={"ROUTER_UNAUTHENTICATED": "0"})["unauthenticated"] is False


def test_the_file_by_its_variable(file):
    found = settings_of(env={"ROUTER_CONFIG": file("workers = 3\n")})
    assert found["workers"] == 3


def test_keys_may_be_spelt_as_the_flags(file):
    assert settings_of("--config", file("keep-alive-s = 5\n"))["keep_alive_s"] == 5.0


def test_a_flag_that_repeats():
    assert settings_of("--listen", "127.0.0.1:1", "--listen", "[::1]:2")["listen"] == ["127.0.0.1:1", "[::1]:2"]
    assert settings_of(env={"ROUTER_LISTEN": "127.0.0.1:1 [::1]:2"})["listen"] == ["127.0.0.1:1", "[::1]:2"]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("workers", 0), ("workers", "x"), ("policy", "best"), ("health", "icmp"), ("health_interval_s", 0), ("connect_timeout_s", 0),
        ("first_byte_timeout_s", -1), ("keep_alive_s", 1e9), ("max_connections", 0), ("max_body_bytes", -1), ("access_log_sample", 1.1),
        ("log_level", "LOUD"), ("unauthenticated", "perhaps"), ("listen", ["x"]), ("replica", ["x"]), ("admin", "x"),
    ],
)  # fmt: skip
def test_a_bad_value_is_bad_wherever_it_stands(name, bad, file):
    flag = "--" + name.replace("_", "-")
    text = bad[0] if isinstance(bad, list) else str(bad)
    replica = [] if name == "replica" else ["--replica", REPLICA]
    ways = [
        (["--config", file(as_toml(name, bad)), *replica], {}),
        (replica, {env_name(name.replace("_", "-")): text}),
    ]
    if not isinstance(getattr(Settings(), name), bool):
        ways.append(([flag, text, *replica], {}))
    for args, env in ways:
        result = run(args, env)
        assert result.exit_code == 2, (args, env, result.output)
        assert flag in result.output


@pytest.mark.parametrize("name", ["keep_alive_s", "idle_timeout_s", "access_log_sample", "drain_deadline_s"])
def test_nan_is_no_number(name):
    result = run(["--" + name.replace("_", "-"), "nan", "--replica", REPLICA])
    assert result.exit_code == 2


def test_one_text_in_the_file_where_a_list_is_wanted(file):
    """It is refused or taken as a list of one; it is not a list of letters."""
    result = run(["--config", file('replica = "http://a:1"\n')])
    if result.exit_code == 0:
        assert json.loads(result.output)["replica"] == ["http://a:1"]
    else:
        assert "'h'" not in result.output


def test_an_unknown_key_is_named(file):
    path = file("wrokers = 1\n")
    result = run(["--config", path, "--replica", REPLICA])
    assert result.exit_code == 2
    assert "router.wrokers" in result.output
    assert path in result.output


class TestServeCheck:
    def check(self, *args, env=None):
        return run(["serve", "--check", *args], env, main)

    def test_good(self, file):
        assert self.check("--replica", REPLICA).output == "ok: 1 endpoints, 1 replicas\n"
        path = file(
            '[[endpoint]]\nname = "e"\n[[endpoint]]\nname = "f"\nhosts = ["f"]\n[[endpoint.replica]]\naddress = "http://h:1"\n'
        )
        assert self.check("--config", path).output == "ok: 2 endpoints, 1 replicas\n"

    @pytest.mark.parametrize(
        ("args", "word"),
        [
            ([], "--replica"),
            (["--replica", "h:1"], "--replica"),
            (["--replica", REPLICA, "--listen", "0.0.0.0:80"], "--listen 0.0.0.0:80"),
            (["--replica", REPLICA, "--admin", "0.0.0.0:80"], "--admin-token"),
            (["--config", "/does/not/exist.toml"], "cannot be read"),
            (["--bogus"], "--bogus"),
        ],
    )
    def test_bad(self, args, word):
        result = self.check(*args)
        assert result.exit_code == 2
        assert word in result.output
        assert "Traceback" not in result.output

    def test_a_bad_file_names_the_place(self, file):
        result = self.check("--config", file('[[endpoint]]\nname = "e"\npolicy = "best"\n'))
        assert result.exit_code == 2
        assert "policy" in result.output

    def test_flags_beat_the_file_here_too(self, file):
        path = file('listen = ["0.0.0.0:80"]\n')
        assert self.check("--config", path, "--replica", REPLICA).exit_code == 2
        assert self.check("--config", path, "--replica", REPLICA, "--listen", "127.0.0.1:80").exit_code == 0
        assert (
            self.check("--config", path, "--replica", REPLICA, env={"ROUTER_LISTEN": "127.0.0.1:80"}).exit_code == 0
        )
