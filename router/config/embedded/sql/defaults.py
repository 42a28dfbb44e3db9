"""DEFAULT expressions of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.config.embedded.errors import unsupported

if TYPE_CHECKING:
    from router.config.embedded.catalog import Column
    from router.config.embedded.values import Stored


def default_value(column: Column, at: int) -> Stored:
    """Return the value of a column that an insert leaves out, for a commit at `at`."""
    raise unsupported(f"the DEFAULT of column {column.name}")
