"""Looking up: exact host before longest wildcard before `*`, longest prefix at a segment boundary."""

import pytest

from router.routing.spec import EndpointSpec, RouteSpec, TableSpec
from router.routing.stage import build


def make(*routes):
    """A table of `host path-prefix` texts; each is its own endpoint, named by that text."""
    endpoints = tuple(EndpointSpec(route) for route in routes)
    return build(TableSpec(1, endpoints, tuple(RouteSpec(*route.split(" "), route) for route in routes)), 100.0)


def route(table, authority, path=b"/"):
    found = table.route(authority, path)
    return None if found is None else found.name


HOSTS = make(
    "api.example.com /", "*.example.com /", "*.eu.example.com /", "api.example.com:8080 /", "[::1] /", "[::2]:81 /", "127.0.0.1 /", "* /"
)  # fmt: skip


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"api.example.com", "api.example.com"),
        (b"api.example.com:80", "api.example.com"),
        (b"api.example.com:", "api.example.com"),
        (b"api.example.com:8080", "api.example.com:8080"),
        (b"x.example.com", "*.example.com"),
        (b"x.example.com:8080", "*.example.com"),
        (b"x.y.example.com", "*.example.com"),
        (b"x.eu.example.com", "*.eu.example.com"),
        (b"x.y.eu.example.com", "*.eu.example.com"),
        (b"eu.example.com", "*.example.com"),
        (b"x.example.com.", "*.example.com"),
        (b"x.example.com.:80", "*.example.com"),
        (b"example.com", "*"),
        (b"xexample.com", "*"),
        (b"example.com.evil", "*"),
        (b"[::1]", "[::1]"),
        (b"[::1]:80", "[::1]"),
        (b"[::2]", "*"),
        (b"[::2]:81", "[::2]:81"),
        (b"[::3]:80", "*"),
        (b"127.0.0.1:80", "127.0.0.1"),
        (b"", "*"),
        (b".", "*"),
        (b":80", "*"),
    ],
)
def test_hosts(authority, host):
    assert route(HOSTS, authority) == f"{host} /"


@pytest.mark.parametrize("authority", [b"api.example.com.", b"api.example.com.:80"])
def test_a_trailing_dot_names_the_same_host(authority):
    """RFC 3986 §3.2.2: the rightmost dot only says that the name is absolute. An exact host beats a wildcard."""
    assert route(HOSTS, authority) == "api.example.com /"


def test_without_a_catch_all_there_may_be_no_route():
    table = make("a /", "*.b /")
    assert route(table, b"c") is None
    assert route(table, b"b") is None
    assert route(make(), b"a") is None


PREFIXES = make("a /", "a /v1", "a /v1/chat", "a /v1/chat/", "a /x/")


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        (b"/", "/"),
        (b"/v1", "/v1"),
        (b"/v1/", "/v1"),
        (b"/v1?x=/v1/chat", "/v1"),
        (b"/v10", "/"),
        (b"/v1x/chat", "/"),
        (b"/V1", "/"),
        (b"/v1/chat", "/v1/chat"),
        (b"/v1/chat?", "/v1/chat"),
        (b"/v1/chat/", "/v1/chat/"),
        (b"/v1/chat/x", "/v1/chat/"),
        (b"/v1/chatter", "/v1"),
        (b"/x", "/"),
        (b"/x/", "/x/"),
        (b"/x/y", "/x/"),
        (b"//v1", "/"),
    ],
)
def test_prefixes(path, prefix):
    assert route(PREFIXES, b"a", path) == f"a {prefix}"


def test_a_host_whose_prefixes_do_not_match_falls_through_to_the_next():
    table = make("x.a.b /1", "*.a.b /2", "*.b /3", "* /4")
    for path in (b"/1", b"/2", b"/3", b"/4"):
        assert route(table, b"x.a.b", path).endswith(path.decode())
    assert route(table, b"x.a.b", b"/5") is None


def test_one_endpoint_for_everything():
    table = make("* /")
    for authority, path in ((b"", b"/"), (b"a:1", b"/x"), (b"[::1]", b"/?")):
        assert route(table, authority, path) == "* /"


def test_options_star_does_not_depend_on_the_other_routes():
    assert route(make("* /"), b"a", b"*") == route(make("* /", "b /"), b"a", b"*")


def test_one_prefix_alone_is_still_a_prefix():
    table = make("* /v1")
    assert route(table, b"a", b"/v1/x") == "* /v1"
    assert route(table, b"a", b"/v2") is None


def test_hosts_of_a_spec_may_be_in_any_case():
    assert route(make("API.Example.com /"), b"api.example.com") == "API.Example.com /"


def test_every_replica_with_its_endpoint():
    from router.routing.spec import ReplicaSpec

    spec = TableSpec(
        1, (EndpointSpec("e", (ReplicaSpec("r", "http://h:1"), ReplicaSpec("s", "http://h:2"))), EndpointSpec("f"))
    )
    table = build(spec, 100.0)
    assert [(endpoint.name, replica.id) for endpoint, replica in table.replicas()] == [("e", "r"), ("e", "s")]
    assert all(replica.owner is table.endpoints["e"] for _, replica in table.replicas())
