"""The protobuf classes behind the client library's types, and the small messages made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.cloud.spanner_admin_database_v1 import types as database_types
from google.cloud.spanner_admin_instance_v1 import types as instance_types
from google.cloud.spanner_v1 import types as spanner_types
from google.protobuf import timestamp_pb2

from router.config.embedded.datatypes import CODES, STRING, Type

if TYPE_CHECKING:
    from collections.abc import Iterable


def raw(wrapper: Any) -> Any:
    """Return the protobuf class that a proto-plus class wraps."""
    return type(wrapper.pb(wrapper()))


Spanner = spanner_types
PartialResultSet = raw(spanner_types.PartialResultSet)
ResultSet = raw(spanner_types.ResultSet)
Metadata = raw(spanner_types.ResultSetMetadata)
Stats = raw(spanner_types.ResultSetStats)
SpannerType = raw(spanner_types.Type)
Transaction = raw(spanner_types.Transaction)
TransactionSelector = raw(spanner_types.TransactionSelector)
Session = raw(spanner_types.Session)
Admin = database_types
InstanceAdmin = instance_types


def timestamp(us: int) -> Any:
    """Return a google.protobuf.Timestamp."""
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(us)
    return message


def us_of(message: Any) -> int:
    """Return microseconds of a google.protobuf.Timestamp or Duration."""
    return int(message.seconds) * 1_000_000 + int(message.nanos) // 1000


def type_message(type_: Type) -> Any:
    """Return a google.spanner.v1.Type."""
    message = SpannerType(code=CODES[type_.kind])
    if type_.element is not None:
        message.array_element_type.CopyFrom(type_message(type_.element))
    return message


def metadata(fields: Iterable[tuple[str, Type]], transaction: Any = None) -> bytes:
    """Return ResultSetMetadata, encoded."""
    message = Metadata()
    message.row_type.SetInParent()
    for name, type_ in fields:
        add_field(message.row_type, name, type_message(type_))
    if transaction is not None:
        message.transaction.CopyFrom(transaction)
    encoded: bytes = message.SerializeToString()
    return encoded


def add_field(struct: Any, name: str, type_: Any) -> None:
    """Add a field to a StructType. Its field `type` is called `type_` by the library's classes."""
    item = struct.fields.add(name=name)
    getattr(item, "type_" if hasattr(item, "type_") else "type").CopyFrom(type_)


def _struct(*fields: tuple[str, Any]) -> Any:
    message = SpannerType(code=CODES["STRUCT"])
    for name, type_ in fields:
        add_field(message.struct_type, name, type_)
    return message


def _array(element: Any) -> Any:
    message = SpannerType(code=CODES["ARRAY"])
    message.array_element_type.CopyFrom(element)
    return message


def change_record_metadata() -> bytes:
    """Return the ResultSetMetadata of a change stream query, encoded: one column, ChangeRecord."""
    string, boolean, number, json, moment = (
        SpannerType(code=CODES[kind]) for kind in ("STRING", "BOOL", "INT64", "JSON", "TIMESTAMP")
    )
    column = _struct(("name", string), ("type", json), ("is_primary_key", boolean), ("ordinal_position", number))
    mod = _struct(("keys", json), ("new_values", json), ("old_values", json))
    data = _struct(
        ("commit_timestamp", moment),
        ("record_sequence", string),
        ("server_transaction_id", string),
        ("is_last_record_in_transaction_in_partition", boolean),
        ("table_name", string),
        ("column_types", _array(column)),
        ("mods", _array(mod)),
        ("mod_type", string),
        ("value_capture_type", string),
        ("number_of_records_in_transaction", number),
        ("number_of_partitions_in_transaction", number),
        ("transaction_tag", string),
        ("is_system_transaction", boolean),
    )
    child = _struct(("token", string), ("parent_partition_tokens", _array(type_message(STRING))))
    children = _struct(
        ("start_timestamp", moment), ("record_sequence", string), ("child_partitions", _array(child))
    )
    record = _struct(
        ("data_change_record", _array(data)),
        ("heartbeat_record", _array(_struct(("timestamp", moment)))),
        ("child_partitions_record", _array(children)),
    )
    message = Metadata()
    add_field(message.row_type, "ChangeRecord", _array(record))
    encoded: bytes = message.SerializeToString()
    return encoded
