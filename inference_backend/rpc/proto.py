"""Messages, handlers and stubs from the `.proto` files beside this module, read at import.

The reader knows what those files use: one statement a line; messages with scalar, message and enum fields,
`optional`, `repeated` and `oneof`; enums; services. protoc accepts the same files, and a test compares what both
make of them. A pool of its own keeps these descriptors apart from generated ones of the same names.
"""

from __future__ import annotations

import re
from importlib import resources
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import MethodDescriptor

_FIELD = re.compile(r"(?:(optional|repeated) )?([\w.]+) (\w+) = (\d+);")
_RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\);")
_VALUE = re.compile(r"(\w+) = (\d+);")
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {name: getattr(_Field, f"TYPE_{name.upper()}") for name in (
    "double", "float", "int32", "int64", "uint32", "uint64", "bool", "string", "bytes",
)}  # fmt: skip

pool = descriptor_pool.DescriptorPool()


def parse(name: str) -> descriptor_pb2.FileDescriptorProto:
    """Read the file `name` of this package; ValueError, with the line, for what the reader does not know."""
    lines = [
        line.strip() for line in (resources.files(__package__) / name).read_text().splitlines()
    ]
    found = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3")
    enums = {line.split()[1] for line in lines if line.startswith("enum ")}
    reader = _Reader(found, enums)
    for number, line in enumerate(lines, 1):
        if line and not line.startswith(("//", "syntax ")) and not reader.takes(line):
            raise ValueError(f"{name}, line {number}: {line}")
    return found


class _Reader:
    """Takes one line after another; knows which block it is in."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto, enums: set[str]) -> None:
        self._file = file
        self._enums = enums
        self._block: Any = None
        self._in_oneof = False

    def takes(self, line: str) -> bool:
        """Add what the line says; False if it says nothing known."""
        word, _, rest = line.partition(" ")
        name = rest.rstrip(" {")
        if word == "package":
            self._file.package = rest.rstrip(";")
        elif word == "message":
            self._block = self._file.message_type.add(name=name)
        elif word == "enum":
            self._block = self._file.enum_type.add(name=name)
        elif word == "service":
            self._block = self._file.service.add(name=name)
        elif word == "oneof":
            self._block.oneof_decl.add(name=name)
            self._in_oneof = True
        elif line == "}":
            if self._in_oneof:
                self._in_oneof = False
            else:
                self._close()
        elif isinstance(self._block, descriptor_pb2.ServiceDescriptorProto):
            return self._method(line)
        elif isinstance(self._block, descriptor_pb2.EnumDescriptorProto):
            value = _VALUE.fullmatch(line)
            if value is None:
                return False
            self._block.value.add(name=value[1], number=int(value[2]))
        else:
            return self._field(line)
        return True

    def _method(self, line: str) -> bool:
        found = _RPC.fullmatch(line)
        if found is None:
            return False
        name, client_streaming, takes, server_streaming, gives = found.groups()
        self._block.method.add(
            name=name,
            input_type=self._full(takes),
            output_type=self._full(gives),
            client_streaming=True if client_streaming else None,
            server_streaming=True if server_streaming else None,
        )
        return True

    def _field(self, line: str) -> bool:
        found = _FIELD.fullmatch(line)
        if found is None:
            return False
        label, kind, name, number = found.groups()
        field = self._block.field.add(name=name, number=int(number), json_name=_json_name(name))
        field.label = _Field.LABEL_REPEATED if label == "repeated" else _Field.LABEL_OPTIONAL
        field.type = _SCALARS.get(kind, _Field.TYPE_ENUM if kind in self._enums else _Field.TYPE_MESSAGE)
        if kind not in _SCALARS:
            field.type_name = self._full(kind)
        if self._in_oneof:
            field.oneof_index = len(self._block.oneof_decl) - 1
        field.proto3_optional = label == "optional"
        if not field.proto3_optional:
            field.ClearField("proto3_optional")
        return True

    def _close(self) -> None:
        # An optional field is a oneof of its own, after the written ones (descriptor.proto, proto3_optional).
        if isinstance(self._block, descriptor_pb2.DescriptorProto):
            for field in self._block.field:
                if field.proto3_optional:
                    field.oneof_index = len(self._block.oneof_decl)
                    self._block.oneof_decl.add(name=f"_{field.name}")
        self._block = None

    def _full(self, name: str) -> str:
        return f".{self._file.package}.{name}"


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def load(name: str) -> SimpleNamespace:
    """Add the file `name` to the pool; its message classes by name, and the numbers of its enums' values."""
    file = parse(name)
    pool.Add(file)
    classes = {
        one.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{one.name}"))
        for one in file.message_type
    }
    values = {value.name: value.number for enum in file.enum_type for value in enum.value}
    return SimpleNamespace(**classes, **values)


def handler_of(service: str, implementation: object) -> grpc.GenericRpcHandler:
    """Return a handler for `add_generic_rpc_handlers`: each method of the service is that of `implementation`."""
    methods = {
        method.name: _kind(method, grpc, "_rpc_method_handler")(
            getattr(implementation, method.name),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
        for method in pool.FindServiceByName(service).methods
    }
    return grpc.method_handlers_generic_handler(service, methods)


def stub_of(service: str, channel: Any) -> SimpleNamespace:
    """Return the service's methods on a channel, synchronous or not, by name."""
    methods = {
        method.name: _kind(method, channel)(
            f"/{service}/{method.name}",
            request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        for method in pool.FindServiceByName(service).methods
    }
    return SimpleNamespace(**methods)


def _kind(method: MethodDescriptor, owner: object, suffix: str = "") -> Callable[..., Any]:
    takes = "stream" if method.client_streaming else "unary"
    gives = "stream" if method.server_streaming else "unary"
    found: Callable[..., Any] = getattr(owner, f"{takes}_{gives}{suffix}")
    return found
