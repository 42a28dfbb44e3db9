"""Records to rows: whatever their order, whatever comes twice, the last writer of each row wins."""

import pytest
from configkit import record
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config.reduce import TOMBSTONE_US, RowBook, Transactions, Watermark

T = "Endpoints"


def row(value):
    return ("main", None, None, str(value))


def there(book):
    return {(table, key): value for table, key, value in book.rows()}


# -- last writer wins --------------------------------------------------------------------------------------

commits = st.lists(
    st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 3))), min_size=1, max_size=3, unique_by=lambda w: w[0]),
    min_size=1, max_size=12,
)  # fmt: skip


@given(commits, st.data())
@settings(max_examples=150, deadline=None)
def test_any_order_and_repetition_gives_the_rows_of_commit_order(transactions, data):
    records = [
        record(T, *(((key,), None if value is None else row(value)) for key, value in writes), at=1_000 + i)
        for i, writes in enumerate(transactions)
    ]
    wanted = {}
    for one in records:
        for key, value in one.rows:
            wanted.pop((T, key), None)
            if value is not None:
                wanted[T, key] = value
    told = data.draw(st.permutations(records + data.draw(st.lists(st.sampled_from(records), max_size=8))))
    book = RowBook()
    shown = {}
    for one in told:
        for table, key, value in book.take([one]):
            assert shown.get((table, key)) != value, "a change that changes nothing"
            shown[table, key] = value
    assert there(book) == wanted
    assert {key: value for key, value in shown.items() if value is not None} == wanted
    for one in told:
        assert book.take([one]) == []
        assert book.is_known(one)


@given(commits, st.integers(0, 12), st.data())
@settings(max_examples=100, deadline=None)
def test_a_snapshot_among_the_records_changes_nothing_in_the_end(transactions, cut, data):
    """Whatever was read at one time, and whatever records came before and after it, in any order."""
    records = [
        record(T, *(((key,), None if value is None else row(value)) for key, value in writes), at=1_000 + i)
        for i, writes in enumerate(transactions)
    ]
    cut = min(cut, len(records))
    state, final = {}, {}
    for i, one in enumerate(records):
        for key, value in one.rows:
            for table in (state, final) if i < cut else (final,):
                table.pop(key, None)
                if value is not None:
                    table[key] = value
    before = data.draw(st.lists(st.sampled_from(records), max_size=8))
    begin = records[max(cut - 1, 0) :]  # the stream is read from the snapshot's time on, inclusively
    again = data.draw(st.lists(st.sampled_from(begin), max_size=5)) if begin else []
    after = data.draw(st.permutations(records[cut:] + again))
    book = RowBook()
    shown = {}
    for one in before:
        shown.update({key: value for _, key, value in book.take([one])})
    shown.update({key: value for _, key, value in book.replace(T, state, 1_000 + cut - 1)})
    for one in after:
        shown.update({key: value for _, key, value in book.take([one])})
    assert {key: value for _, key, value in book.rows()} == final
    assert {key: value for key, value in shown.items() if value is not None} == final


def test_equal_timestamps_on_disjoint_rows_are_both_taken():
    book = RowBook()
    book.take([record(T, (("a",), row(1)), at=5, transaction="x")])
    book.take([record(T, (("b",), row(2)), at=5, transaction="y")])
    assert there(book) == {(T, ("a",)): row(1), (T, ("b",)): row(2)}


def test_a_late_record_after_a_delete_does_not_bring_the_row_back():
    book = RowBook()
    assert book.take([record(T, (("a",), None), at=10)]) == []
    assert book.take([record(T, (("a",), row(1)), at=9)]) == []
    assert there(book) == {}
    assert book.take([record(T, (("a",), row(2)), at=11)]) == [(T, ("a",), row(2))]


def test_tables_that_are_not_ours_are_passed_over():
    book = RowBook()
    assert book.take([record("Other", (("a",), ("x",)), at=1)]) == []
    assert book.is_known(record("Other", (("a",), ("x",)), at=1))


# -- forgetting --------------------------------------------------------------------------------------------


def test_a_tombstone_is_forgotten_once_the_watermark_is_far_past_it():
    book = RowBook()
    at = 10**15
    book.take([record(T, (("a",), None), at=at)])
    book.forget(at + TOMBSTONE_US)
    assert ("a",) in book.tables[T]
    book.forget(at + TOMBSTONE_US + 1)
    assert ("a",) not in book.tables[T]


def test_a_row_that_came_back_is_not_forgotten():
    book = RowBook()
    book.take([record(T, (("a",), None), at=1)])
    book.take([record(T, (("a",), row(1)), at=2)])
    book.forget(10**15)
    assert there(book) == {(T, ("a",)): row(1)}
    book.take([record(T, (("a",), None), at=10**15)])
    book.forget(10**15)
    assert book.tables[T][("a",)] == (10**15, None)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
@settings(deadline=None)
def test_all_tombstones_are_forgotten_in_the_end_whatever_their_order(times):
    book = RowBook()
    for i, at in enumerate(times):
        book.take([record(T, ((str(i),), None), at=at)])
    book.forget(51 + TOMBSTONE_US)
    assert book.tables[T] == {}


def test_tombstones_of_a_checkpoint_are_remembered():
    book = RowBook()
    book.tables[T] = {("b",): (7, None), ("a",): (5, None), ("c",): (6, row(1))}
    book.remember_deletions()
    book.forget(6 + TOMBSTONE_US)
    assert set(book.tables[T]) == {("b",), ("c",)}
    book.forget(8 + TOMBSTONE_US)
    assert set(book.tables[T]) == {("c",)}


# -- a whole table as a difference -------------------------------------------------------------------------


def test_a_snapshot_is_a_difference():
    book = RowBook()
    book.take([record(T, (("same",), row(1)), (("changed",), row(1)), (("gone",), row(1)), at=10)])
    changes = book.replace(T, {("same",): row(1), ("changed",): row(2), ("new",): row(3)}, 20)
    assert sorted(changes, key=str) == sorted(
        [(T, ("changed",), row(2)), (T, ("new",), row(3)), (T, ("gone",), None)], key=str
    )
    assert book.replace(T, {("same",): row(1), ("changed",): row(2), ("new",): row(3)}, 21) == []


def test_what_is_newer_than_the_snapshot_stays():
    book = RowBook()
    book.take([record(T, (("written",), row(9)), (("deleted",), None), (("only",), row(9)), at=30)])
    assert book.replace(T, {("written",): row(1), ("deleted",): row(1)}, 20) == []
    assert there(book) == {(T, ("written",)): row(9), (T, ("only",)): row(9)}


def test_what_a_snapshot_took_out_does_not_come_back_with_a_late_record():
    book = RowBook()
    book.take([record(T, (("gone",), row(1)), at=10)])
    book.replace(T, {}, 20)
    assert book.take([record(T, (("gone",), row(1)), at=10), record(T, (("gone",), row(2)), at=15)]) == []
    assert there(book) == {}


# -- transactions ------------------------------------------------------------------------------------------


def part(name, of, at=5, transaction="t"):
    return record(T, ((name,), row(1)), at=at, transaction=transaction, records=of)


def test_a_transaction_of_one_record_is_whole_at_once():
    transactions = Transactions()
    one = part("a", 1)
    assert transactions.add(one, 0.0) == [one]
    assert transactions.first_s() is None
    assert transactions.oldest_us() is None


def test_a_transaction_of_several_records_comes_with_its_last():
    transactions = Transactions()
    a, b, c = part("a", 3), part("b", 3), part("c", 3)
    assert transactions.add(a, 1.0) == []
    assert transactions.add(b, 2.0) == []
    assert transactions.add(a, 2.5) == []  # said again by a stream that was restarted
    assert transactions.first_s() == 1.0
    assert transactions.oldest_us() == 5
    assert transactions.add(c, 3.0) == [a, b, c]
    assert transactions.oldest_us() is None


def test_transactions_that_share_a_timestamp_are_two():
    transactions = Transactions()
    a, b = part("a", 2, transaction="x"), part("b", 2, transaction="y")
    assert transactions.add(a, 0.0) == []
    assert transactions.add(b, 0.0) == []
    assert transactions.add(part("c", 2, transaction="x"), 0.0)[0] is a
    assert transactions.oldest_us() == 5


def test_what_is_overdue_is_let_go_and_the_rest_of_it_comes_late():
    transactions = Transactions()
    old, young = part("a", 2, at=5), part("b", 2, at=7, transaction="u")
    transactions.add(old, 1.0)
    transactions.add(young, 2.0)
    assert list(transactions.overdue(1.0)) == [[old]]
    assert transactions.oldest_us() == 7
    assert list(transactions.overdue(1.5)) == []
    rest = part("z", 2, at=5)
    assert transactions.add(rest, 3.0) == []
    assert list(transactions.overdue(3.0)) == [[young], [rest]]
    assert transactions.first_s() is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_each_record_is_let_go_exactly_once(numbers, rng):
    """Over several partitions, in any order between them, with repetitions of what is pending."""
    parts = []
    for transaction in set(numbers):
        of = numbers.count(transaction)
        parts += [part(f"{transaction}-{i}", of, at=transaction, transaction=str(transaction)) for i in range(of)]
    rng.shuffle(parts)
    transactions = Transactions()
    done = []
    for one in parts:
        whole = transactions.add(one, 0.0)
        if whole:
            assert len(whole) == one.records
            done += whole
        elif rng.random() < 0.5:
            assert transactions.add(one, 0.0) == []
    assert sorted(done) == sorted(parts)
    assert transactions.first_s() is None


# -- the watermark -----------------------------------------------------------------------------------------


def test_the_watermark_is_the_least_of_the_open_partitions():
    watermark = Watermark(0, {"a": 10, "b": 20})
    assert watermark.read() == 10
    watermark.move("a", 30)
    assert watermark.read() == 20
    watermark.move("b", 25)
    watermark.move("b", 15)  # said again
    assert watermark.read() == 25


def test_it_never_moves_back():
    watermark = Watermark(0, {"a": 10})
    assert watermark.read() == 10
    assert watermark.open("late", 5)
    assert watermark.read() == 10
    assert Watermark(99, {"a": 10}).read() == 99


def test_a_transaction_that_is_not_whole_holds_it_back():
    watermark = Watermark(0, {"a": 10})
    assert watermark.read(oldest_pending_us=7) == 6
    assert watermark.read() == 10
    assert watermark.read(oldest_pending_us=7) == 10


def test_children_hold_it_where_they_begin():
    watermark = Watermark(0, {"a": 10})
    watermark.move("a", 50)
    assert watermark.open("left", 40)
    assert watermark.open("right", 40)
    watermark.end("a")
    assert watermark.read() == 40
    watermark.move("left", 60)
    assert watermark.read() == 40
    watermark.move("right", 55)
    assert watermark.read() == 55


def test_a_child_of_a_merge_is_opened_once_though_both_parents_name_it():
    watermark = Watermark(0, {"a": 10, "b": 10})
    assert watermark.open("child", 20)
    watermark.end("a")
    watermark.move("child", 30)
    assert not watermark.open("child", 20)
    watermark.end("b")
    assert watermark.positions == {"child": 30}
    watermark.end("child")
    assert not watermark.open("child", 20)  # by now it has ended itself


def test_partitions_that_ended_long_ago_are_forgotten():
    watermark = Watermark(0, {"a": 10})
    watermark.open("b", 10)
    watermark.end("a")
    watermark.move("b", 2 * TOMBSTONE_US)
    watermark.read()
    watermark.open("c", 2 * TOMBSTONE_US)
    watermark.end("b")
    assert "a" not in watermark._ended


def test_without_partitions_it_stays():
    watermark = Watermark(7, {"a": 9})
    assert watermark.read() == 9
    watermark.end("a")
    assert watermark.read() == 9


@pytest.mark.parametrize("positions", [{}, {"a": 5}])
def test_positions_are_its_own(positions):
    watermark = Watermark(0, positions)
    watermark.open("x", 1)
    assert "x" not in positions
