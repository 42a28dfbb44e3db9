"""From messages to rows and records: whole again however they were cut, or a WireError."""

import json

import pytest
from google.cloud.spanner_v1 import types
from google.protobuf.struct_pb2 import ListValue, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config.timestamps import format_timestamp
from router.config.wire import Child, DataRecord, Heartbeat, RowAssembler, WireError, change_records, plain

Partial = type(types.PartialResultSet.pb(types.PartialResultSet()))


def value(plain_value):
    found = Value()
    if plain_value is None:
        found.null_value = 0
    elif isinstance(plain_value, bool):
        found.bool_value = plain_value
    elif isinstance(plain_value, (int, float)):
        found.number_value = plain_value
    elif isinstance(plain_value, str):
        found.string_value = plain_value
    else:
        found.list_value.SetInParent()
        found.list_value.values.extend(map(value, plain_value))
    return found


def message(values, *, width=None, chunked=False):
    found = Partial(chunked_value=chunked)
    for _ in range(width or 0):
        found.metadata.row_type.fields.add()
    found.values.extend(map(value, values))
    return found


def rows_of(messages):
    assembler = RowAssembler()
    return [[plain(v) for v in row] for one in messages for row in assembler.feed(one)]


# -- rows --------------------------------------------------------------------------------------------------


def test_rows_are_cut_by_their_width():
    assert rows_of([message(["a", 1.0, None, "b", 2.0, True], width=3)]) == [["a", 1.0, None], ["b", 2.0, True]]


def test_a_row_may_begin_in_one_message_and_end_in_another():
    messages = [message(["a"], width=3), message([1.0]), message([]), message([None, "b", 2.0]), message([True])]
    assert rows_of(messages) == [["a", 1.0, None], ["b", 2.0, True]]


def test_the_width_may_come_before_any_value():
    assert rows_of([message([], width=2), message(["a", "b"])]) == [["a", "b"]]


def test_a_text_in_many_pieces():
    messages = [message(["x", "he"], width=2, chunked=True), message(["l"], chunked=True), message([""], chunked=True), message(["lo", "y", "z"])]
    assert rows_of(messages) == [["x", "hello"], ["y", "z"]]


def test_a_chunk_may_wait_over_an_empty_message():
    assert rows_of([message(["a"], width=1, chunked=True), message([]), message(["b"])]) == [["ab"]]


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([["a", "b"], ["c"]], ["a", "bc"]),
        ([["a", "b"], ["", "c"]], ["a", "b", "c"]),
        ([[], ["a"]], ["a"]),
        ([["a"], []], ["a"]),
        ([[1.0], [2.0]], [1.0, 2.0]),
        ([[None], [None]], [None, None]),
        ([[True], ["a"]], [True, "a"]),
        ([[["a"]], [["b"], "c"]], [["ab"], "c"]),
        ([[[["a"]]], [[["b", "c"]]]], [[["ab", "c"]]]),
        ([["a"], ["b"], ["c"]], ["abc"]),
        ([["a", None], ["b"]], ["a", None, "b"]),
    ],
)
def test_lists_are_joined_and_their_touching_members_merged(pieces, whole):
    messages = [message([piece], width=1 if i == 0 else None, chunked=i < len(pieces) - 1) for i, piece in enumerate(pieces)]
    assert rows_of(messages) == [[whole]]


def split_value(plain_value, at):
    """A value's two chunks, as a server may cut it; None where it cannot be cut."""
    if isinstance(plain_value, str) and len(plain_value) > 1:
        cut = 1 + at % (len(plain_value) - 1)
        return plain_value[:cut], plain_value[cut:]
    if isinstance(plain_value, list) and plain_value:
        index = at % len(plain_value)
        inner = split_value(plain_value[index], at // 7)
        if inner is not None:
            return [*plain_value[:index], inner[0]], [inner[1], *plain_value[index + 1 :]]
    return None


cells = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)),
    lambda inner: st.lists(inner, max_size=3), max_leaves=6,
)  # fmt: skip


@given(st.lists(st.lists(cells, min_size=3, max_size=3), max_size=5), st.data())
@settings(max_examples=200, deadline=None)
def test_any_cut_of_any_rows(rows, data):
    messages, batch = [], []
    for cell in [cell for row in rows for cell in row]:
        pieces = [cell]
        while data.draw(st.booleans()) and (cut := split_value(pieces[-1], data.draw(st.integers(0, 1_000)))):
            pieces[-1:] = cut
        for piece in pieces[:-1]:
            messages.append(message([*batch, piece], chunked=True))
            batch = []
        batch.append(pieces[-1])
        if data.draw(st.booleans()):
            messages.append(message(batch))
            batch = []
    messages.append(message(batch))
    for _ in range(3):
        messages[0].metadata.row_type.fields.add()
    assert rows_of(messages) == rows


@pytest.mark.parametrize(
    "messages",
    [
        [message(["a"])],
        [message([], width=1, chunked=True)],
        [message(["a"], width=1, chunked=True), message([1.0])],
        [message([1.0], width=1, chunked=True), message([1.0])],
        [message([None], width=1, chunked=True), message(["a"])],
        [message([["a"]], width=1, chunked=True), message(["a"])],
        [message(["a"], width=1, chunked=True), message([["a"]])],
        [message([True], width=1, chunked=True), message([True])],
    ],
)
def test_messages_that_do_not_fit_together(messages):
    with pytest.raises(WireError):
        rows_of(messages)


def test_a_struct_is_none_of_our_values():
    struct = Value()
    struct.struct_value.fields["a"].string_value = "b"
    with pytest.raises(WireError):
        plain(struct)
    assert plain(Value()) is None


# -- change records ----------------------------------------------------------------------------------------

AT = 1_795_178_096_123_456


def data_record(table="Endpoints", mods=(), kind="INSERT", records="1", at=AT, transaction="t"):
    """A data change record in the order of Spanner's fields."""
    return [
        format_timestamp(at), "00000000", transaction, True, table, [], [list(mod) for mod in mods], kind, "NEW_ROW",
        records, "1", "", False,
    ]  # fmt: skip


def change(data=(), heartbeats=(), children=()):
    return value([[list(data), list(heartbeats), list(children)]])


def mod(keys, new=None, old="{}"):
    return (json.dumps(keys), json.dumps({} if new is None else new), old)


def records(column):
    return list(change_records(column))


def test_rows_that_were_written():
    (found,) = records(change([data_record(mods=[
        mod({"EndpointId": "e"}, {"Environment": "main", "Policy": '{"retries": 1}', "Health": None, "State": "ACTIVE", "UpdatedAt": "x"}),
        mod({"EndpointId": "f"}, {"State": "PAUSED"}),
    ])]))  # fmt: skip
    assert found == DataRecord(AT, "t", 1, "Endpoints", [
        (("e",), ("main", '{"retries": 1}', None, "ACTIVE")), (("f",), (None, None, None, "PAUSED")),
    ])  # fmt: skip


def test_rows_that_were_deleted():
    (found,) = records(change([data_record("Replicas", [mod({"EndpointId": "e", "ReplicaId": "r"})], "DELETE", records="3")]))
    assert found == DataRecord(AT, "t", 3, "Replicas", [(("e", "r"), None)])


def test_the_order_of_keys_is_the_tables():
    (found,) = records(change([data_record("Replicas", [mod({"ReplicaId": "r", "EndpointId": "e"})], "DELETE")]))
    assert found.rows == [(("e", "r"), None)]


def test_tables_that_are_not_ours_have_no_rows_and_count():
    (found,) = records(change([data_record("Other", [("garbage", "garbage", "")], records="2")]))
    assert found == DataRecord(AT, "t", 2, "Other", [])


def test_columns_that_are_not_ours_are_passed_over():
    (found,) = records(change([data_record("RouteSets", [mod({"RouteSetId": "s"}, {"Later": [1, {"a": 2}]})])]))
    assert found.rows == [(("s",), ())]


def test_heartbeats_and_children():
    children = [format_timestamp(AT), "0", [["left", ["parent"]], ["right", ["parent"]]]]
    assert records(change(heartbeats=[[format_timestamp(AT)]], children=[children])) == [
        Heartbeat(AT), Child(AT, "left"), Child(AT, "right"),
    ]  # fmt: skip


def test_a_column_may_hold_several_records_or_none():
    both = value([[[data_record()], [], []], [[], [[format_timestamp(AT)]], []]])
    assert [type(found) for found in records(both)] == [DataRecord, Heartbeat]
    assert records(value([])) == []


def broken(field, changed):
    fields = data_record(mods=[mod({"EndpointId": "e"}, {"State": "ACTIVE"})])
    fields[field] = changed
    return change([fields])


BAD = {
    "no time": broken(0, "soon"), "a time that is a number": broken(0, 1.0), "records": broken(9, "many"), "no records": broken(9, None),
    "fields are missing": change([data_record()[:6]]), "no fields": change([[]]), "a record of two parts": value([[[], []]]),
    "keys are no JSON": change([data_record(mods=[("{", "{}", "{}")])]),
    "keys are a list": change([data_record(mods=[("[]", "{}", "{}")])]),
    "keys are null": change([data_record(mods=[("null", "{}", "{}")])]),
    "keys lack one": change([data_record(mods=[mod({"Other": "e"}, {"State": "ACTIVE"})])]),
    "values are no JSON": change([data_record(mods=[('{"EndpointId": "e"}', "{", "{}")])]),
    "values are a text": change([data_record(mods=[('{"EndpointId": "e"}', '"x"', "{}")])]),
    "values are endless": change([data_record(mods=[('{"EndpointId": "e"}', '{"State":' + "[" * 50_000, "{}")])]),
    "a mod of one part": change([data_record(mods=[('{"EndpointId": "e"}',)])]),
    "a heartbeat without a time": change(heartbeats=[[]]), "a heartbeat that is a text": change(heartbeats=[["now"]]),
    "children without partitions": change(children=[[format_timestamp(AT)]]),
    "a child without a token": change(children=[[format_timestamp(AT), "0", [[]]]]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_change_record_is_a_wire_error(name):
    with pytest.raises(WireError):
        records(BAD[name])


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.sampled_from(["{}", "1", format_timestamp(AT), "Endpoints"])),
    lambda inner: st.lists(inner, max_size=11), max_leaves=40,
)  # fmt: skip


@given(junk)
@settings(max_examples=300, deadline=None)
def test_any_value_is_records_or_a_wire_error(column):
    try:
        found = records(value(column))
    except WireError:
        return
    assert all(isinstance(one, (DataRecord, Heartbeat, Child)) for one in found)


def test_the_kit_makes_lists():
    assert isinstance(value([]).list_value, ListValue)
    assert value([]).WhichOneof("kind") == "list_value"
