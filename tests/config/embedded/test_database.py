"""The engine: snapshots, the change log and partitions hold together whatever is written, split, merged and restarted."""

import json
import random

import pytest

from router.config.embedded import garbage, keys
from router.config.embedded.database import Database, RowChange
from router.config.embedded.errors import StoreError
from router.config.embedded.limits import Settings
from router.config.embedded.partitions import SPACE
from router.config.embedded.sql.defaults import default_value

E = ["EndpointId", "State", "N"]
R = ["EndpointId", "ReplicaId", "State", "Weight"]


def code(call, *args, **kwargs):
    with pytest.raises(StoreError) as raised:
        call(*args, **kwargs)
    return raised.value.code


def test_snapshots_are_exact(bench):
    one = bench.put("Endpoints", E, ["a", "up", 1], ["b", "up", 2])
    two = bench.put("Endpoints", ["EndpointId", "State"], ["a", "down"])
    assert [row[:3] for row in bench.rows("Endpoints", one)] == [("a", "up", 1), ("b", "up", 2)]
    assert [row[:3] for row in bench.rows("Endpoints", two)] == [("a", "down", 1), ("b", "up", 2)]
    assert bench.rows("Endpoints", one - 1) == []


def apply_record(state, record):
    """Fold one data change record of NEW_ROW into table → key → values."""
    _, _, _, _, table, _, mods, kind, *_ = record
    rows = state.setdefault(table, {})
    for mod_keys, new, _ in mods:
        key = tuple(json.loads(mod_keys).values())
        if kind == "DELETE":
            rows.pop(key, None)
        else:
            rows[key] = json.loads(new)


def snapshot(bench, at):
    state = {}
    for table in bench.db.catalog.tables.values():
        n = len(table.key)
        names = [column.name for column in table.columns.values()]
        for row in bench.rows(table.name, at):
            shown = [f"{v}Z" if c.type.kind == "TIMESTAMP" and v else str(v) if isinstance(v, int) else v for v, c in zip(row, table.columns.values(), strict=True)]
            state.setdefault(table.name, {})[tuple(shown[:n])] = dict(zip(names[n:], shown[n:], strict=True))
    return state


@pytest.mark.parametrize("seed", range(6))
def test_log_and_snapshots_tell_the_same_story(bench, helpers, seed):
    """Random commits, splits, merges, clock steps and restarts: at every commit, the replayed log is the snapshot."""
    rng = random.Random(seed)
    times = []
    for _ in range(120):
        step = rng.random()
        bench.wall.us += rng.choice([-5_000, 0, 1, 700, 40_000])
        stream = bench.db.catalog.streams["routerstream"].id
        opened = bench.db.partitions.open(stream)
        if step < 0.05:
            bench.db.split("RouterStream", rng.choice(opened).token)
        elif step < 0.1 and len(opened) > 1:
            at = rng.randrange(len(opened) - 1)
            bench.db.merge("RouterStream", [opened[at].token, opened[at + 1].token])
        elif step < 0.13:
            bench.db.storage.close()  # as if killed: nothing is settled
            bench.reopened()
        else:
            messages = []
            for _ in range(rng.randint(1, 3)):
                e, r = f"e{rng.randrange(4)}", f"r{rng.randrange(5)}"
                messages.append(rng.choice([
                    lambda e=e, r=r: helpers.mutation("insert_or_update", "Endpoints", [*E, "UpdatedAt"], [e, rng.choice("xyz"), rng.randrange(9), "spanner.commit_timestamp()"]),
                    lambda e=e, r=r: helpers.mutation("insert_or_update", "Replicas", R, [e, r, rng.choice("xyz"), rng.randrange(9)]),
                    lambda e=e, r=r: helpers.mutation("update", "Replicas", ["EndpointId", "ReplicaId", "Weight"], [e, r, rng.randrange(9)]),
                    lambda e=e, r=r: helpers.mutation("replace", "Endpoints", E, [e, "new", 0]),
                    lambda e=e, r=r: helpers.deletion("Replicas", [e, r]),
                    lambda e=e, r=r: helpers.deletion("Endpoints", [e]),
                ])())  # fmt: skip
            before = bench.db.clock.last()
            try:
                times.append(bench.commit(*messages))
                assert times[-1] > before
            except StoreError as error:
                if error.code != "NOT_FOUND":
                    raise
    assert len(times) > 40
    log = bench.log()
    state, at = {}, 0
    for commit in times:
        while at < len(log) and log[at][0] <= commit:
            assert log[at][0] == commit
            apply_record(state, log[at][2][0][0])
            at += 1
        assert {k: v for k, v in state.items() if v} == snapshot(bench, commit)
        index = bench.db.catalog.indexes["bystate"]
        entries = [key for _, key in bench.db.entries(index, [keys.ALL], commit)]
        assert sorted(entries) == [key for key, _ in bench.db.scan(bench.db.catalog.tables["replicas"], [keys.ALL], commit)]
    assert at == len(log)


def test_open_partitions_cover_the_space_at_every_time(bench):
    rng = random.Random(1)
    times = [bench.db.clock.next()]
    stream = bench.db.catalog.streams["routerstream"].id
    for _ in range(60):
        opened = bench.db.partitions.open(stream)
        if rng.random() < 0.6 or len(opened) < 3:
            bench.db.split("RouterStream", rng.choice(opened).token)
        else:
            at = rng.randrange(len(opened) - 2)
            bench.db.merge("RouterStream", [p.token for p in opened[at : at + 3]])
        times += [bench.db.clock.last(), bench.db.clock.next()]
    bench.db.close()
    bench.reopened()
    for at in times:
        found = bench.db.partitions.at(stream, at)
        assert found[0].low == 0
        assert found[-1].high == SPACE
        assert all(a.high == b.low for a, b in zip(found, found[1:], strict=False))
    everything = {p.token: p for p in bench.db.partitions.of(stream)}
    for partition in everything.values():
        for child in partition.children:
            assert partition.token in everything[child].parents
            assert everything[child].started == partition.ended


def test_one_transaction_lands_in_many_partitions_with_one_timestamp(bench, helpers):
    stream = bench.db.catalog.streams["routerstream"].id
    for _ in range(3):
        for partition in bench.db.partitions.open(stream):
            bench.db.split("RouterStream", partition.token)
    at = bench.put("Endpoints", E, *[[f"e{i}", "up", i] for i in range(40)])
    records = bench.log()
    assert {record[0] for record in records} == {at}
    tokens = {token for _, token, _ in records}
    assert len(tokens) == 8
    for sequence, (_, _, record) in enumerate(records):
        data = record[0][0]
        assert data[1] == f"{sequence:08d}"
        assert data[9:11] == [str(len(records)), "8"]
    for token in tokens:  # the mark is per partition
        assert [r[0][0][3] for _, t, r in records if t == token][-1] is True


def test_cascaded_deletes_are_in_the_log(bench, helpers):
    bench.put("Endpoints", E, ["a", "up", 1], ["b", "up", 1])
    bench.put("Replicas", R, ["a", "1", "up", 1], ["a", "2", "up", 1], ["b", "1", "up", 1])
    bench.commit(helpers.deletion("Endpoints", ["a"]))
    assert [row[:2] for row in bench.rows("Replicas")] == [("b", "1")]
    kinds = [(r[0][0][4], r[0][0][7], len(r[0][0][6])) for _, _, r in bench.log()[-2:]]
    assert kinds == [("Endpoints", "DELETE", 1), ("Replicas", "DELETE", 2)]


def test_what_a_change_to_a_row_is_called(bench, helpers):
    """Net effects, as Spanner tells them: deleted and inserted again is an INSERT, inserted and deleted nothing."""
    bench.put("Endpoints", E, ["a", "up", 1])
    put = lambda op, key: helpers.mutation(op, "Endpoints", ["EndpointId", "N"], [key, 7])  # noqa: E731
    gone = lambda key: helpers.deletion("Endpoints", [key])  # noqa: E731
    for messages, wanted in [
        ([put("update", "a"), put("update", "a")], ["UPDATE"]),
        ([gone("a"), put("insert", "a")], ["INSERT"]),
        ([put("replace", "a")], ["INSERT"]),
        ([put("insert", "n"), gone("n")], []),
        ([put("insert", "n"), put("update", "n")], ["INSERT"]),
        ([put("update", "n"), gone("n")], ["DELETE"]),
        ([gone("n")], []),
        ([helpers.mutation("update", "Endpoints", ["EndpointId"], ["a"])], []),
    ]:
        seen = len(bench.log())
        bench.commit(*messages)
        assert [r[0][0][7] for _, _, r in bench.log()[seen:]] == wanted


CAPTURES = {
    "OLD_AND_NEW_VALUES": [("", {"A": "1", "B": "x"}), ({"A": "1"}, {"A": "2"}), ({"A": "2", "B": "x"}, "")],
    "NEW_VALUES": [("", {"A": "1", "B": "x"}), ("", {"A": "2"}), ("", "")],
    "NEW_ROW": [("", {"A": "1", "B": "x"}), ("", {"A": "2", "B": "x"}), ("", "")],
    "NEW_ROW_AND_OLD_VALUES": [("", {"A": "1", "B": "x"}), ({"A": "1"}, {"A": "2", "B": "x"}), ({"A": "2", "B": "x"}, "")],
}


@pytest.mark.parametrize("capture", CAPTURES)
def test_capture_types(make_bench, helpers, capture):
    bench = make_bench(None, schema=[
        "CREATE TABLE T (K INT64, A INT64, B STRING(MAX), Unwatched INT64) PRIMARY KEY (K)",
        f"CREATE CHANGE STREAM RouterStream FOR T(A, B) OPTIONS (value_capture_type='{capture}')",
    ])  # fmt: skip
    bench.put("T", ["K", "A", "B"], [1, 1, "x"])
    bench.put("T", ["K", "A"], [1, 2])
    bench.put("T", ["K", "Unwatched"], [1, 5])  # not a change for the stream
    bench.commit(helpers.deletion("T", [1]))
    mods = [r[0][0][6][0] for _, _, r in bench.log()]
    assert [(json.loads(old) or "", json.loads(new) or "") for _, new, old in mods] == CAPTURES[capture]
    assert all(json.loads(mod_keys) == {"K": "1"} for mod_keys, _, _ in mods)


def test_excluded_kinds_and_silent_transactions_leave_no_record(make_bench, helpers):
    bench = make_bench(None, schema=[
        "CREATE TABLE T (K INT64, A INT64) PRIMARY KEY (K)",
        "CREATE CHANGE STREAM RouterStream FOR ALL OPTIONS (exclude_insert=true, exclude_ttl_deletes=true)",
    ])  # fmt: skip
    bench.put("T", ["K", "A"], [1, 1], [2, 1])
    bench.put("T", ["K", "A"], [1, 2])
    bench.commit(helpers.deletion("T", [1]), system=True)
    bench.commit(helpers.deletion("T", [2]), silent=True)
    assert [r[0][0][7] for _, _, r in bench.log()] == ["UPDATE"]


def test_restart_keeps_rows_schema_log_and_time(bench):
    bench.put("Endpoints", E, ["a", "up", 1])
    last, log, rows = bench.db.clock.safe(), bench.log(), bench.rows("Endpoints")
    bench.db.storage.close()
    bench.wall.us -= 3_600_000_000
    bench.reopened()
    assert bench.rows("Endpoints", last) == rows
    assert bench.log() == log
    assert bench.put("Endpoints", E, ["b", "up", 1]) > last


def test_a_failed_commit_leaves_nothing(bench, helpers):
    bench.put("Endpoints", E, ["a", "up", 1])
    rows, log = bench.rows("Endpoints"), bench.log()
    assert code(bench.commit, helpers.mutation("insert", "Endpoints", E, ["n", "up", 1]), helpers.mutation("insert", "Endpoints", E, ["a", "up", 1])) == "ALREADY_EXISTS"
    assert (bench.rows("Endpoints"), bench.log()) == (rows, log)
    bound = bench.db.storage.meta("clock")
    assert bound >= bench.db.clock.last()  # a rollback must not take back what the clock has promised


def test_errors_of_mutations(bench, helpers):
    bench.put("Endpoints", E, ["a", "up", 1])
    m = helpers.mutation
    for wanted, message in [
        ("NOT_FOUND", m("update", "Endpoints", E, ["nope", "up", 1])),
        ("NOT_FOUND", m("insert", "Replicas", R, ["nope", "r", "up", 1])),
        ("NOT_FOUND", m("insert", "Nope", ["A"], ["a"])),
        ("NOT_FOUND", m("insert", "Endpoints", ["EndpointId", "Zed"], ["a", 1])),
        ("FAILED_PRECONDITION", m("insert", "Endpoints", ["State"], ["a"])),
        ("FAILED_PRECONDITION", m("insert", "Endpoints", ["EndpointId"], [None])),
        ("FAILED_PRECONDITION", m("insert", "Endpoints", ["EndpointId", "State"], ["b", "x" * 17])),
        ("FAILED_PRECONDITION", m("insert", "Endpoints", ["EndpointId", "N"], ["b", "x"])),
        ("FAILED_PRECONDITION", m("insert", "Endpoints", ["EndpointId", "UpdatedAt"], ["b", "2090-01-01T00:00:00Z"])),
        ("FAILED_PRECONDITION", helpers.deletion("Replicas", ["a"])),
        ("INVALID_ARGUMENT", m("insert", "Endpoints", ["EndpointId", "N", "N"], ["b", 1, 1])),
        ("INVALID_ARGUMENT", m("insert", "Endpoints", ["EndpointId", "N"], ["b"])),
        ("INVALID_ARGUMENT", m("insert", "Endpoints", ["EndpointId"], ["b" * 64, "c"])),
    ]:
        assert code(bench.commit, message) == wanted, message


def test_unique_index_holds_against_the_present_and_within_a_commit(make_bench, helpers):
    bench = make_bench(None, schema=["CREATE TABLE T (K INT64, V INT64) PRIMARY KEY (K)", "CREATE UNIQUE INDEX U ON T(V)", "CREATE CHANGE STREAM RouterStream FOR ALL"])
    put = lambda *rows, op="insert_or_update": helpers.mutation(op, "T", ["K", "V"], *rows)  # noqa: E731
    bench.commit(put([1, 10], [2, 20]))
    assert code(bench.commit, put([3, 10])) == "ALREADY_EXISTS"
    assert code(bench.commit, put([3, 30], [4, 30])) == "ALREADY_EXISTS"
    bench.commit(put([1, 20], [2, 10]))  # an exchange within one commit is no violation
    bench.commit(helpers.deletion("T", [1]), put([3, 20]))
    assert [tuple(row) for row in bench.rows("T")] == [(2, 10), (3, 20)]


def test_version_gc_keeps_what_may_be_read(make_bench):
    bench = make_bench(None, Settings(version_retention_s=60, retention_s=600))
    first = bench.put("Endpoints", E, ["a", "1", 1])
    for n in range(20):
        bench.wall.us += 10_000_000
        bench.put("Endpoints", E, ["a", str(n), n])
    while garbage.collect(bench.db, most=3):
        pass
    assert code(bench.db.check_readable, first) == "FAILED_PRECONDITION"
    for back in range(6):
        at = bench.wall.us - back * 10_000_000
        bench.db.check_readable(at)
        assert bench.rows("Endpoints", at)[0][2] == 19 - back
    assert bench.db.storage.db.execute(f"SELECT count(*) FROM old_{bench.db.catalog.tables['endpoints'].id}").fetchone()[0] == 6
    assert len(bench.log()) == 21
    bench.wall.us += 601_000_000
    while garbage.collect(bench.db, most=3):
        pass
    assert bench.log() == []


def test_partitions_that_ended_long_ago_are_forgotten(make_bench):
    bench = make_bench(None, Settings(retention_s=600))
    stream = bench.db.catalog.streams["routerstream"].id
    bench.db.split("RouterStream", bench.db.partitions.open(stream)[0].token)
    assert len(bench.db.partitions.of(stream)) == 3
    bench.wall.us += 700_000_000
    garbage.collect(bench.db)
    assert len(bench.db.partitions.of(stream)) == 2


def test_row_deletion_policy_is_a_system_transaction(make_bench, helpers):
    bench = make_bench(None, schema=[
        "CREATE TABLE T (K INT64, At TIMESTAMP) PRIMARY KEY (K), ROW DELETION POLICY (OLDER_THAN(At, INTERVAL 2 DAY))",
        "CREATE CHANGE STREAM RouterStream FOR ALL",
    ])  # fmt: skip
    bench.put("T", ["K", "At"], [1, "2025-12-29T00:00:00Z"], [2, "2025-12-31T00:00:00Z"], [3, None])
    ((table, doomed),) = garbage.expired(bench.db)
    bench.db.commit(lambda workspace, _: [workspace.delete(table, key) for key in doomed], system=True)
    assert [row[0] for row in bench.rows("T")] == [2, 3]
    assert bench.log()[-1][2][0][0][12] is True


# -- schema changes


def test_columns_come_and_go_without_mixing_their_values(bench):
    bench.put("Endpoints", E, ["a", "old", 1])
    bench.db.apply_ddl(["ALTER TABLE Endpoints DROP COLUMN State", "ALTER TABLE Endpoints ADD COLUMN State INT64"])
    assert [row[-1] for row in bench.rows("Endpoints")] == [None]
    bench.put("Endpoints", ["EndpointId", "State"], ["a", 5])
    bench.db.close()
    bench.reopened()
    assert [row[-1] for row in bench.rows("Endpoints")] == [5]
    assert json.loads(bench.log()[-1][2][0][0][6][0][1])["State"] == "5"


def test_an_index_made_later_knows_the_rows(bench):
    bench.put("Endpoints", E, ["a", "x", 2], ["b", "x", 1])
    bench.db.apply_ddl(["CREATE INDEX ByN ON Endpoints(N DESC)"])
    index = bench.db.catalog.indexes["byn"]
    assert len(list(bench.db.entries(index, [keys.ALL], bench.db.safe()))) == 2
    assert code(bench.db.apply_ddl, ["CREATE UNIQUE INDEX U ON Endpoints(State)"]) == "FAILED_PRECONDITION"
    assert "u" not in bench.db.catalog.indexes
    bench.db.apply_ddl(["DROP INDEX ByN"])


def test_a_dropped_and_recreated_stream_has_new_partitions(bench):
    bench.put("Endpoints", E, ["a", "x", 2])
    old = bench.db.partitions.open(bench.db.catalog.streams["routerstream"].id)[0].token
    bench.db.apply_ddl(["DROP CHANGE STREAM RouterStream", "CREATE CHANGE STREAM RouterStream FOR Endpoints"])
    new = bench.db.catalog.streams["routerstream"].id
    assert bench.db.partitions.get(new, old) is None
    assert bench.log() == []


def test_defaults(make_bench):
    bench = make_bench(None, schema=[
        "CREATE TABLE T (K INT64, A INT64 DEFAULT (40 + 2), B STRING(9) DEFAULT ('x'), At TIMESTAMP DEFAULT (CURRENT_TIMESTAMP())) PRIMARY KEY (K)",
    ])  # fmt: skip
    bench.put("T", ["K"], [1])
    bench.put("T", ["K", "A"], [2, None])
    assert [row[:3] for row in bench.rows("T")] == [(1, 42, "x"), (2, None, "x")]
    assert bench.rows("T")[0][3].startswith("2026-01-01T12")
    assert code(bench.db.apply_ddl, ["CREATE TABLE U (K INT64 DEFAULT ('x')) PRIMARY KEY (K)"]) == "INVALID_ARGUMENT"


# -- following


def test_a_follower_takes_the_upstreams_timestamps(bench, helpers):
    bench.put("Endpoints", E, ["a", "up", 1])
    now = bench.db.clock.last()
    bench.db.follow("relay://upstream")
    bench.db.advance_to(now)
    bench.wall.us += 60_000_000
    assert bench.db.safe() == now  # the local clock says nothing any more
    row = ("b", "up", 2, None)
    bench.db.apply_at(now + 10, [RowChange("Endpoints", ["b"], row), RowChange("Endpoints", ["a"], None)], tag="t")
    bench.db.apply_at(now + 10, [RowChange("Endpoints", ["c"], ("c", "up", 3, None))])
    assert [r[0] for r in bench.rows("Endpoints")] == ["a"]
    bench.db.advance_to(now + 10)
    assert [r[0] for r in bench.rows("Endpoints")] == ["b", "c"]
    assert [r[0] for r in bench.rows("Endpoints", now + 9)] == ["a"]
    assert [(at, r[0][0][7]) for at, _, r in bench.log()[1:]] == [(now + 10, "DELETE"), (now + 10, "INSERT"), (now + 10, "INSERT")]
    bench.db.advance_to(now)  # never back
    assert bench.db.safe() == now + 10
    with pytest.raises(ValueError):
        bench.db.apply_at(now + 10, [])
    for refused in (lambda: bench.commit(helpers.deletion("Endpoints", ["b"])), lambda: bench.db.apply_ddl(["DROP INDEX ByState"])):
        with pytest.raises(StoreError, match="relay://upstream") as error:
            refused()
        assert error.value.code == "FAILED_PRECONDITION"
    bench.db.close()
    bench.reopened()
    assert (bench.db.upstream, bench.db.safe()) == ("relay://upstream", now + 10)


def test_the_same_row_twice_at_one_upstream_timestamp(bench):
    bench.db.follow("relay://upstream")
    at = bench.db.clock.last() + 100
    for state in ("x", "y"):
        bench.db.apply_at(at, [RowChange("Endpoints", ["a"], ("a", state, 1, None))])
    bench.db.advance_to(at)
    assert [row[1] for row in bench.rows("Endpoints")] == ["y"]
    assert bench.rows("Endpoints", at - 1) == []


def test_a_store_of_another_format_is_refused(make_bench, tmp_path):
    bench = make_bench(tmp_path / "x.sqlite")
    bench.db.storage.set_meta("format", 99)
    with pytest.raises(RuntimeError, match="format 99"):
        Database(bench.path, Settings(), bench.wall, default_value)
