"""Read-write transactions: serializable or ABORTED, bounded, and answered twice if asked twice."""

import pytest

from router.config.embedded import keys, limits
from router.config.embedded.errors import StoreError

E = ["EndpointId", "State", "N"]


def finish(bench, transaction, *messages):
    from router.config.embedded import mutations

    return bench.transactions.commit(transaction, lambda workspace, at: mutations.apply(workspace, messages, at), "tag")


def aborted(bench, transaction):
    with pytest.raises(StoreError) as refused:
        finish(bench, transaction)
    return refused.value.code == "ABORTED"


@pytest.fixture
def stocked(bench):
    bench.put("Endpoints", E, ["a", "up", 1], ["b", "up", 2], ["d", "up", 3])
    return bench


def test_a_row_that_was_read_and_changed_aborts(stocked):
    transaction = stocked.transactions.begin()
    assert stocked.query("SELECT N FROM Endpoints WHERE EndpointId = 'a'", transaction=transaction) == [(1,)]
    stocked.put("Endpoints", E, ["a", "up", 9])
    assert stocked.query("SELECT N FROM Endpoints WHERE EndpointId = 'a'", transaction=transaction) == [(1,)]  # its snapshot
    assert aborted(stocked, transaction)


def test_other_rows_do_not_matter(stocked):
    transaction = stocked.transactions.begin()
    stocked.query("SELECT N FROM Endpoints WHERE EndpointId = 'a'", transaction=transaction)
    stocked.put("Endpoints", E, ["b", "up", 9], ["c", "up", 9])
    finish(stocked, transaction)


@pytest.mark.parametrize(("key", "conflict"), [("c", True), ("zz", False)])
def test_a_row_that_appears_in_a_range_aborts(stocked, key, conflict):
    transaction = stocked.transactions.begin()
    stocked.query("SELECT N FROM Endpoints WHERE EndpointId >= 'b' AND EndpointId <= 'e'", transaction=transaction)
    stocked.put("Endpoints", E, [key, "up", 9])
    if conflict:
        assert aborted(stocked, transaction)
    else:
        finish(stocked, transaction)


def test_a_row_that_was_missing_and_appeared_aborts(stocked):
    transaction = stocked.transactions.begin()
    assert transaction.get(stocked.db.catalog.table("Endpoints"), keys.encode(stocked.db.catalog.table("Endpoints").key, ["q"])) is None
    stocked.put("Endpoints", E, ["q", "up", 9])
    assert aborted(stocked, transaction)


def test_mutations_alone_never_conflict(stocked, helpers):
    transaction = stocked.transactions.begin()
    stocked.put("Endpoints", E, ["a", "up", 9])
    finish(stocked, transaction, helpers.mutation("update", "Endpoints", ["EndpointId", "N"], ["a", 10]))
    assert stocked.query("SELECT N FROM Endpoints WHERE EndpointId = 'a'") == [(10,)]


def test_dml_and_then_mutations_in_one_record(stocked, helpers):
    transaction = stocked.transactions.begin()
    stocked.dml(transaction, "UPDATE Endpoints SET N = N + 1 WHERE EndpointId = 'a'")
    finish(stocked, transaction, helpers.mutation("update", "Endpoints", ["EndpointId", "State"], ["a", "down"]))
    (record,) = [r for _, _, r in stocked.log()][-1:]
    assert record[0][0][7] == "UPDATE"
    assert stocked.rows("Endpoints")[0][:3] == ("a", "down", 2)


def test_a_schema_change_aborts_what_was_begun_before(stocked):
    transaction = stocked.transactions.begin()
    stocked.query("SELECT N FROM Endpoints", transaction=transaction)
    stocked.db.apply_ddl(["ALTER TABLE Endpoints ADD COLUMN X INT64"])
    assert aborted(stocked, transaction)


def test_too_many_changes_since_abort_rather_than_guess(stocked, monkeypatch):
    monkeypatch.setattr(limits, "RECENT_COMMITS", 4)
    transaction = stocked.transactions.begin()
    stocked.query("SELECT N FROM Endpoints WHERE EndpointId = 'a'", transaction=transaction)
    for n in range(5):
        stocked.put("Endpoints", E, ["b", "up", n])
    assert aborted(stocked, transaction)


def test_limits(stocked, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TRANSACTIONS", 2)
    first = stocked.transactions.begin()
    stocked.transactions.begin()
    with pytest.raises(StoreError, match="MAX_TRANSACTIONS") as refused:
        stocked.transactions.begin()
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    monkeypatch.setattr(limits, "TRANSACTION_IDLE_S", -1)
    stocked.transactions.sweep()
    assert len(stocked.transactions) == 0
    with pytest.raises(StoreError) as refused:
        stocked.transactions.get(first.id)
    assert refused.value.code == "ABORTED"


def test_ids(stocked):
    from router.config.embedded.transactions import read_only_at, read_only_id

    assert read_only_at(read_only_id(5)) == 5
    assert read_only_at(b"ro") is None
    with pytest.raises(StoreError) as refused:
        stocked.transactions.get(b"xx")
    assert refused.value.code == "INVALID_ARGUMENT"
    transaction = stocked.transactions.begin()
    at = finish(stocked, transaction)
    assert stocked.transactions.committed(transaction.id) == at


def test_lost_updates_never_happen(stocked):
    """Many read-modify-writes, begun together and committed in turn: the sum is the number that committed."""
    begun = [stocked.transactions.begin() for _ in range(6)]
    for transaction in begun:
        stocked.dml(transaction, "UPDATE Endpoints SET N = N + 1 WHERE EndpointId = 'a'")
    done = 0
    for transaction in begun:
        try:
            finish(stocked, transaction)
            done += 1
        except StoreError as error:
            if error.code != "ABORTED":
                raise
    assert done == 1
    assert stocked.query("SELECT N FROM Endpoints WHERE EndpointId = 'a'") == [(1 + done,)]
