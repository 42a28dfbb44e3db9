"""DEFAULT expressions of columns: constants, and functions of nothing but the time."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from router.config.embedded.errors import invalid
from router.config.embedded.sql.expressions import Compiler, Context, Scope
from router.config.embedded.sql.parser import parse_expression
from router.config.embedded.sql.typed import Params, coerce, shown, to_rest
from router.config.embedded.timestamps import text_of_us
from router.config.embedded.values import COMMIT_TIMESTAMP

if TYPE_CHECKING:
    from router.config.embedded.catalog import Column
    from router.config.embedded.sql import ast
    from router.config.embedded.values import Stored


@lru_cache(256)
def _parsed(text: str) -> ast.Expression:
    return parse_expression(text)


def default_value(column: Column, at: int) -> Stored:
    """Return the value of a column that an insert leaves out, for a commit at `at`.

    StoreError for an expression that is not of the column's type.
    """
    assert column.default is not None
    compiler = Compiler(Scope(), Context(Params({}, {}), text_of_us(at), writes=column.commit_timestamp))
    typed = compiler.compile(_parsed(column.default))
    if typed.pending:
        return text_of_us(at) if at else COMMIT_TIMESTAMP
    found = coerce(typed, column.type.plain())
    if found is None:
        raise invalid(
            f"The DEFAULT of column {column.name} has type {shown(typed)}, the column {column.type.name()}"
        )
    return to_rest(column.type, found.run(()))  # type: ignore[no-any-return]
