"""The table without a store: the file, and what was added and removed by hand."""

import pytest

from router.config.settings import Settings
from router.config.static import ConfigError
from router.config.static_table import StaticTable

FILE = """
[[endpoint]]
name = "e"
hosts = ["e.example"]
[[endpoint.replica]]
address = "http://10.0.0.1:80"
[[endpoint.replica]]
address = "http://10.0.0.2:80"
id = "named"
[[endpoint]]
name = "f"
hosts = ["f.example"]
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "router.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def static(path):
    return StaticTable(Settings(config=str(path)))


def ids(table, endpoint="e"):
    (found,) = [e for e in table.endpoints if e.name == endpoint]
    return [replica.id for replica in found.replicas]


def test_the_files_table(static):
    assert ids(static.spec()) == ["10.0.0.1:80", "named"]
    assert {route.host for route in static.spec().routes} == {"e.example", "f.example"}


def test_replicas_of_the_command_line_are_one_endpoint():
    static = StaticTable(Settings(replica=["http://10.0.0.1:80", "http://10.0.0.2:80"], policy="random"))
    (endpoint,) = static.spec().endpoints
    assert (endpoint.name, endpoint.policy, len(endpoint.replicas)) == ("default", "random", 2)


def test_added_by_hand(static):
    replica, endpoint, table = static.add("http://10.0.0.3:80/", None, 2.0)
    assert (replica, endpoint) == ("10.0.0.3:80", "e")
    assert ids(table) == ["10.0.0.1:80", "named", "10.0.0.3:80"]
    assert table.endpoints[0].replicas[-1].weight == 2.0
    _, endpoint, table = static.add("http://10.0.0.3:80", "f", 1.0)
    assert endpoint == "f"
    assert ids(table, "f") == ["10.0.0.3:80"]
    assert static.spec() == table


@pytest.mark.parametrize(
    ("url", "endpoint", "says"),
    [
        ("nonsense", None, "scheme"), ("gopher://h:1", None, "gopher"), ("http://h", None, "port"), ("http://h:1", "nobody", "nobody"),
        ("http://10.0.0.1:80", None, "twice"), ("http://h:1/path", None, "http://h"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_changes_nothing(static, url, endpoint, says):
    before = static.spec()
    with pytest.raises(ValueError, match=says):
        static.add(url, endpoint, 1.0)
    assert static.spec() == before


def test_removed_by_hand(static):
    assert ids(static.remove("named")) == ["10.0.0.1:80"]
    assert ids(static.remove("10.0.0.1:80")) == []
    assert static.remove("named") is None
    assert static.remove("nobody") is None


def test_removed_and_added_again(static):
    static.remove("10.0.0.1:80")
    _, _, table = static.add("http://10.0.0.1:80", None, 1.0)
    assert sorted(ids(table)) == ["10.0.0.1:80", "named"]
    static.add("http://10.0.0.3:80", None, 1.0)
    assert sorted(ids(static.remove("10.0.0.3:80"))) == ["10.0.0.1:80", "named"]
    _, _, table = static.add("http://10.0.0.3:80", None, 1.0)
    assert sorted(ids(table)) == ["10.0.0.1:80", "10.0.0.3:80", "named"]


def test_what_is_removed_by_hand_is_removed_from_the_endpoint_that_has_it(static):
    """Two endpoints may have a replica of the same id."""
    static.add("http://10.0.0.1:80", "f", 1.0)
    table = static.remove("10.0.0.1:80")
    assert ids(table, "f") == ids(table, "e")[1:] == []


def test_a_reload_forgets_what_was_done_by_hand(static, path):
    static.add("http://10.0.0.3:80", None, 1.0)
    static.remove("named")
    path.write_text(FILE.replace("10.0.0.1", "10.0.0.9"))
    assert ids(static.reload()) == ["10.0.0.9:80", "named"]
    assert ids(static.spec()) == ["10.0.0.9:80", "named"]


@pytest.mark.parametrize("text", ["[[endpoint", '[[endpoint]]\nname = "e e"', "", FILE + '[[endpoint]]\nname = "e"', "[[other]]"])
def test_a_bad_file_is_refused_and_what_was_there_stays(static, path, text):
    static.add("http://10.0.0.3:80", None, 1.0)
    before = static.spec()
    path.write_text(text)
    with pytest.raises(ConfigError):
        static.reload()
    assert static.spec() == before


def test_a_file_that_is_gone_is_refused(static, path):
    before = static.spec()
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        static.reload()
    assert static.spec() == before


def test_replicas_of_the_command_line_may_be_reloaded():
    static = StaticTable(Settings(replica=["http://10.0.0.1:80"]))
    static.add("http://10.0.0.2:80", None, 1.0)
    assert ids(static.reload(), "default") == ["10.0.0.1:80"]
