"""The TOML file: every key becomes what the table says, every bad value names its place."""

import pytest

from router.config.static import ConfigError, EndpointEntry, File, build_table, read_file
from router.routing.spec import (
    AffinitySpec,
    ConnectionSpec,
    EndpointSpec,
    HealthSpec,
    HoldSpec,
    LaneSpec,
    LimitSpec,
    OutlierSpec,
    RegionSpec,
    ReplicaSpec,
    RouteSpec,
    ScalingSpec,
    StickySpec,
    TableSpec,
    TimeoutSpec,
    TlsSpec,
)

EVERYTHING = """
model_hosts = ["inference.example.com"]
[router]
workers = 2
[[endpoint]]
name = "llama"
hosts = ["Llama.Example.com", "*.llama.example.com", "[::1]:80", "*"]
path_prefixes = ["/v1", "/health"]
policy = "least_inflight"
engine = "sglang"
slow_start_s = 30
retries = 1
environment = "team-a"
failover = ["us", "asia"]
models = ["meta/llama", "llama-3"]
[endpoint.affinity]
load_factor = 1.5
floor = 2
[endpoint.hold]
wait_s = 30
max_waiting = 5
only_tunnels = false
[endpoint.health]
kind = "http"
path = "/ready2"
fallback_path = "/health2"
interval_s = 0.5
timeout_s = 1.5
unhealthy_after = 2
healthy_after = 3
[endpoint.outlier]
consecutive_failures = 7
base_ejection_s = 1.0
max_ejection_s = 60
max_ejected_share = 0.25
panic_threshold = 0.1
[endpoint.timeouts]
connect_s = 0.2
first_byte_s = 30
total_s = 600.5
idle_s = 120
[endpoint.limits]
max_body_bytes = 1000
max_concurrency = 64
endpoint_concurrency = 640
[endpoint.tls]
verify = false
server_name = "model.example"
[endpoint.connections]
floor = 2
ceiling = 3
ping_s = 0.0
[endpoint.sessions]
idle_timeout_s = 30
max_idle_timeout_s = 60
max_per_replica = 10
start_wait_s = 5
max_waiting = 7
[endpoint.scaling]
target_concurrency = 8
min_replicas = 1
[[endpoint.replica]]
address = "http://127.0.0.1:30000"
weight = 2
id = "one"
state = "DRAINING"
region = "eu"
lanes = { port = 8443, certificate = "PEM" }
[[endpoint.replica]]
address = "http://[::1]:30001"
[[region]]
name = "eu"
failover = ["us"]
[[region]]
name = "us"
state = "DRAINING"
weight = 2.0
"""


def write(tmp_path, text):
    path = tmp_path / "router.toml"
    path.write_text(text)
    return str(path)


def build(tmp_path, text):
    file = read_file(write(tmp_path, text))
    return build_table(file, 7, "f")


def test_every_key(tmp_path):
    table = build(tmp_path, EVERYTHING)
    assert table == TableSpec(
        7,
        (
            EndpointSpec(
                "llama",
                (
                    ReplicaSpec("one", "http://127.0.0.1:30000", 2.0, "DRAINING", region="eu", lanes=LaneSpec(8_443, "PEM")),
                    ReplicaSpec("::1:30001", "http://[::1]:30001"),
                ),
                HealthSpec("http", "/ready2", "/health2", 0.5, 1.5, 2, 3),
                policy="least_inflight",
                slow_start_s=30.0,
                retries=1,
                outlier=OutlierSpec(7, 1.0, 60.0, 0.25, 0.1),
                timeouts=TimeoutSpec(0.2, 30.0, 600.5, 120.0),
                limits=LimitSpec(1_000, 64, 640),
                engine="sglang",
                tls=TlsSpec(server_name="model.example", verify=False),
                connections=ConnectionSpec(2, 3, 0.0),
                scaling=ScalingSpec(8.0, min_replicas=1),
                sessions=StickySpec(30, 60, 10, 5.0, 7),
                environment="team-a",
                failover=("us", "asia"),
                affinity=AffinitySpec(1.5, 2),
                hold=HoldSpec(30.0, 5, only_tunnels=False),
                models=("meta/llama", "llama-3"),
            ),
        ),
        (
            *(
                RouteSpec(host, prefix, "llama")
                for host in ("llama.example.com", "*.llama.example.com", "[::1]:80", "*")
                for prefix in ("/v1", "/health")
            ),
            RouteSpec("inference.example.com", "/", "", by_model=True),
        ),
        regions=(RegionSpec("eu", failover=("us",)), RegionSpec("us", "DRAINING", 2.0)),
    )


@pytest.mark.parametrize("spec", [EndpointSpec, HealthSpec, OutlierSpec, TimeoutSpec, LimitSpec, ReplicaSpec, AffinitySpec, HoldSpec, RegionSpec])
def test_no_key_is_missing_in_the_text_above(spec):
    """`Every key of routing.spec may stand there`: a new one is to be added to the test."""
    made = {"replicas", "slot", "address", "name", "needs_token", "generation"}  # the last is said of the whole router
    assert all(
        f"\n{field} = " in EVERYTHING or field in made or f"[endpoint.{field}]" in EVERYTHING
        for field in spec.__struct_fields__
    )


def test_defaults(tmp_path):
    table = build(tmp_path, '[[endpoint]]\nname = "e"\n')
    assert table.endpoints == (EndpointSpec("e"),)
    assert table.routes == (RouteSpec("*", "/", "e"),)


def test_an_empty_file(tmp_path):
    assert read_file(write(tmp_path, "")).endpoint == []


ONE = '[[endpoint]]\nname = "e"\n'


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("x = 1\n", "x"),
        ("endpoint = 1\n", "endpoint"),
        ("[[endpoint]]\n", "name"),
        ("[[endpoint]]\nname = 1\n", "endpoint[0].name"),
        (ONE + 'nmae = "x"\n', "nmae"),
        (ONE + 'policy = "best"\n', "endpoint[0].policy"),
        (ONE + 'hosts = "a"\n', "endpoint[0].hosts"),
        (ONE + "slow_start_s = -1\n", "endpoint[0].slow_start_s"),
        (ONE + 'retries = "2"\n', "endpoint[0].retries"),
        (ONE + "retries = -1\n", "endpoint[0].retries"),
        (ONE + '[endpoint.health]\nkind = "icmp"\n', "endpoint[0].health.kind"),
        (ONE + "[endpoint.health]\ninterval_s = 0\n", "endpoint[0].health.interval_s"),
        (ONE + "[endpoint.health]\nunhealthy_after = 0\n", "endpoint[0].health.unhealthy_after"),
        (ONE + "[endpoint.outlier]\nmax_ejected_share = 1.5\n", "endpoint[0].outlier.max_ejected_share"),
        (ONE + "[endpoint.timeouts]\nconnect_s = 0\n", "endpoint[0].timeouts.connect_s"),
        (ONE + "[endpoint.timeouts]\nidle_s = nan\n", "endpoint[0].timeouts.idle_s"),
        (ONE + "[endpoint.timeouts]\ntotal_s = inf\n", "endpoint[0].timeouts.total_s"),
        (ONE + "[endpoint.limits]\nmax_concurrency = -1\n", "endpoint[0].limits.max_concurrency"),
        (ONE + "[endpoint.limits]\nmax_body_bytes = 1.5\n", "endpoint[0].limits.max_body_bytes"),
        (ONE + "[endpoint.connections]\nceiling = 0\n", "endpoint[0].connections.ceiling"),
        (ONE + "[endpoint.connections]\nfloor = 65\n", "endpoint[0].connections.floor"),
        (ONE + "[endpoint.scaling]\ntarget_concurrency = 1\nmax_replicas = 0\n", "endpoint[0].scaling.max_replicas"),
        (ONE + '[[endpoint.replica]]\nid = "x"\n', "endpoint[0].replica[0]"),
        (ONE + '[[endpoint.replica]]\naddress = "http://h:1"\nweight = 0\n', "endpoint[0].replica[0].weight"),
        (ONE + '[[endpoint.replica]]\naddress = "http://h:1"\nweight = 1e-306\n', "endpoint[0].replica[0].weight"),
        (ONE + '[[endpoint.replica]]\naddress = "http://h:1"\nstate = "UP"\n', "endpoint[0].replica[0].state"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_field(tmp_path, text, place):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        read_file(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert place in str(refusal.value).replace("[...]", "[0]")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[[endpoint]]\nname = ""\n', "endpoint[0].name"),
        ('[[endpoint]]\nname = "a b"\n', "endpoint[0].name"),
        (f'[[endpoint]]\nname = "{"x" * 129}"\n', "endpoint[0].name"),
        (ONE + ONE, "endpoint[1].name"),
        (ONE + 'hosts = ["a b"]\n', "endpoint[0].hosts"),
        (ONE + 'hosts = ["*a"]\n', "endpoint[0].hosts"),
        (ONE + 'hosts = ["a.*"]\n', "endpoint[0].hosts"),
        (ONE + 'hosts = ["*.a:80"]\n', "endpoint[0].hosts"),
        (ONE + 'hosts = ["http://a"]\n', "endpoint[0].hosts"),
        (ONE + 'hosts = [""]\n', "endpoint[0].hosts"),
        (ONE + 'path_prefixes = ["v1"]\n', "endpoint[0].path_prefixes"),
        (ONE + 'path_prefixes = ["/a b"]\n', "endpoint[0].path_prefixes"),
        (ONE + 'path_prefixes = ["/\u00e4"]\n', "endpoint[0].path_prefixes"),
        (ONE + '[[endpoint]]\nname = "f"\n', "endpoint[1]"),
        (ONE + '[[endpoint.replica]]\naddress = "h:1"\n', "endpoint[0].replica[0].address"),
        (ONE + '[[endpoint.replica]]\naddress = "http://a..b:1"\n', "endpoint[0].replica[0].address"),
        (ONE + '[[endpoint.replica]]\naddress = "http://h:1"\nid = "a b"\n', "endpoint[0].replica[0].id"),
        (ONE + 2 * '[[endpoint.replica]]\naddress = "http://h:1"\n', "endpoint[0].replica[1].id"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place(tmp_path, text, place):
    with pytest.raises(ConfigError) as refusal:
        build(tmp_path, text)
    assert str(refusal.value).startswith(f"f: {place}")


@pytest.mark.parametrize("text", ["[[endpoint]", "a = ", "\x00"])
def test_no_toml(tmp_path, text):
    with pytest.raises(ConfigError, match="not TOML"):
        read_file(write(tmp_path, text))


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"# \xe4")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(str(tmp_path / "latin.toml"))


def test_the_same_route_twice_of_one_endpoint_is_no_conflict():
    build_table(File(endpoint=[EndpointEntry("e", hosts=("a", "A"))]), 1, "f")
