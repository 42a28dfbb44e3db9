"""The column and expression types, and how each is called in DDL, in messages and in change records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["BOOL", "INT64", "FLOAT64", "TIMESTAMP", "DATE", "STRING", "BYTES", "JSON", "ARRAY"]

# google.spanner.v1.TypeCode
CODES: Final[dict[str, int]] = {
    "BOOL": 1,
    "INT64": 2,
    "FLOAT64": 3,
    "TIMESTAMP": 4,
    "DATE": 5,
    "STRING": 6,
    "BYTES": 7,
    "ARRAY": 8,
    "STRUCT": 9,
    "JSON": 11,
}
KINDS: Final = {code: kind for kind, code in CODES.items() if kind != "STRUCT"}
KEY_KINDS: Final = frozenset({"BOOL", "INT64", "FLOAT64", "TIMESTAMP", "DATE", "STRING", "BYTES"})


@dataclass(frozen=True, slots=True)
class Type:
    """A type: `element` for arrays only, `length` (characters or bytes) for STRING(n) and BYTES(n), 0 for MAX."""

    kind: Kind
    element: Type | None = None
    length: int = 0

    def plain(self) -> Type:
        """Return the type of an expression with this type, without the length."""
        if self.element is not None:
            return array_of(self.element.plain())
        return SCALARS[self.kind]

    def name(self) -> str:
        """Return the name as messages write it: INT64, ARRAY<STRING>."""
        return f"ARRAY<{self.element.name()}>" if self.element is not None else self.kind

    def ddl(self) -> str:
        """Return the type as DDL writes it: STRING(MAX), ARRAY<BYTES(32)>."""
        if self.element is not None:
            return f"ARRAY<{self.element.ddl()}>"
        if self.kind in {"STRING", "BYTES"}:
            return f"{self.kind}({self.length or 'MAX'})"
        return self.kind

    def in_record(self) -> dict[str, object]:
        """Return the JSON of a change record's column type, keys in order."""
        if self.element is not None:
            return {"array_element_type": self.element.in_record(), "code": "ARRAY"}
        return {"code": self.kind}


SCALARS: Final[dict[str, Type]] = {
    kind: Type(kind) for kind in ("BOOL", "INT64", "FLOAT64", "TIMESTAMP", "DATE", "STRING", "BYTES", "JSON")
}
BOOL, INT64, FLOAT64 = SCALARS["BOOL"], SCALARS["INT64"], SCALARS["FLOAT64"]
TIMESTAMP, DATE, STRING = SCALARS["TIMESTAMP"], SCALARS["DATE"], SCALARS["STRING"]
BYTES, JSON = SCALARS["BYTES"], SCALARS["JSON"]


def array_of(element: Type) -> Type:
    """Return ARRAY<element>."""
    return Type("ARRAY", element)
