"""INSERT, UPDATE and DELETE: found rows first, then their changes into the transaction's workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from router.config.embedded.errors import invalid
from router.config.embedded.mutations import columns_of
from router.config.embedded.sql import ast
from router.config.embedded.sql.expressions import Compiler, Context, Scope
from router.config.embedded.sql.select import Query, project
from router.config.embedded.sql.sources import TICK, Source, View, key_ranges, table_for_writing
from router.config.embedded.sql.typed import Typed, coerce, shown, to_rest
from router.config.embedded.values import COMMIT_TIMESTAMP
from router.config.embedded.workspace import no_commit_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from router.config.embedded.catalog import Column
    from router.config.embedded.datatypes import Type
    from router.config.embedded.storage import Row
    from router.config.embedded.values import Stored
    from router.config.embedded.workspace import Workspace


class Result(NamedTuple):
    """`changed` rows were changed; `rows` of `fields` are what THEN RETURN says of them."""

    changed: int
    fields: list[tuple[str, Type]]
    rows: list[Row]


class Change:
    """One DML statement, checked. `run` is a generator of ticks that ends with the `Result`."""

    def __init__(self, view: View, statement: ast.Insert | ast.Update | ast.Delete, context: Context) -> None:
        assert view.transaction is not None
        self._view = view
        self._statement = statement
        self._context = context._replace(writes=True)
        self._workspace: Workspace = view.transaction.workspace
        name = statement.table if isinstance(statement, ast.Insert) else statement.table.name
        self._table = table_for_writing(view, name)
        ref = ast.TableRef(self._table.name) if isinstance(statement, ast.Insert) else statement.table
        source = Source(view, ref)
        self._alias = source.alias
        scope = Scope()
        scope.add(source.alias, source.columns)
        self._reader = Compiler(scope, context)
        self._writer = Compiler(scope, self._context)
        self._returned = project(self._reader, statement.returning) if statement.returning else []

    def run(self) -> Iterator[Result | None]:
        """Yield ticks, then the result. A StoreError leaves the workspace half changed: the transaction is lost."""
        statement = self._statement
        if isinstance(statement, ast.Insert):
            changed = yield from self._insert(statement)
        elif isinstance(statement, ast.Update):
            changed = yield from self._update(statement)
        else:
            changed = yield from self._delete(statement)
        self._workspace.check_unique()
        fields = [(column.name, column.type) for column in self._returned]
        rows = [tuple(column.run(row) for column in self._returned) for row in changed] if fields else []
        yield Result(len(changed), fields, rows)

    # -- INSERT

    def _insert(self, statement: ast.Insert) -> Any:
        table, workspace = self._table, self._workspace
        columns: list[Column] = []
        for name in statement.columns:
            column = table.columns.get(name.lower())
            if column is None:
                raise invalid(f"Column {name} is not present in table {table.name}")
            if column in columns:
                raise invalid(f"INSERT has columns with duplicate name: {name}")
            columns.append(column)
        if statement.query is None:
            rows = self._values(statement.rows, columns)
        else:
            rows = yield from self._query(statement.query, columns)
        changed: list[Row] = []
        for given in rows:
            chosen = [column for column in columns if column.name.lower() in given]
            if (
                statement.mode == "IGNORE"
                and workspace.get(table, workspace.key_of(table, dict(given), "insert")) is not None
            ):
                continue
            operation = "insert_or_update" if statement.mode == "UPDATE" else "insert"
            values = [given[column.name.lower()] for column in chosen]
            key = workspace.write(table, operation, chosen, values)  # type: ignore[arg-type]
            after = workspace.get(table, key)
            assert after is not None
            changed.append(after)
        return changed

    def _values(
        self, rows: Sequence[Sequence[ast.Expression]], columns: Sequence[Column]
    ) -> list[dict[str, Stored]]:
        nothing = Compiler(Scope(), self._context)
        out: list[dict[str, Stored]] = []
        for row in rows:
            if len(row) != len(columns):
                raise invalid(f"Inserted row has wrong column count; Has {len(row)}, expected {len(columns)}")
            given: dict[str, Stored] = {}
            for node, column in zip(row, columns, strict=True):
                if not isinstance(node, ast.DefaultValue):
                    given[column.name.lower()] = self._assign(nothing.compile(node), column, ())
            out.append(given)
        return out

    def _query(self, select: ast.Select, columns: Sequence[Column]) -> Any:
        query = Query(self._view, select, self._context._replace(writes=False))
        if len(query.columns) != len(columns):
            raise invalid(f"Inserted row has wrong column count; Has {len(query.columns)}, expected {len(columns)}")
        for (_, type_), column in zip(query.fields, columns, strict=True):
            if type_ != column.type.plain():
                raise invalid(
                    f"Query column of type {type_.name()} cannot be assigned to {column.name}, "
                    f"which has type {column.type.name()}"
                )
        out: list[dict[str, Stored]] = []
        for row in query.rows():
            if row is TICK:
                yield TICK
            else:
                out.append({column.name.lower(): value for column, value in zip(columns, row, strict=True)})
        return out

    def _assign(self, typed: Typed, column: Column, row: Row) -> Stored:
        if typed.pending:
            if column.type.kind != "TIMESTAMP" or not column.commit_timestamp:
                raise no_commit_timestamp(self._table, column)
            return COMMIT_TIMESTAMP
        return to_rest(column.type, _assignable(typed, column).run(row))  # type: ignore[no-any-return]

    # -- UPDATE and DELETE

    def _found(self, where: ast.Expression) -> Any:
        test = self._reader.condition(where, "WHERE")
        ranges = key_ranges(self._table, self._alias, where, self._reader)
        found: list[tuple[bytes, Row]] = []
        for item in self._view.scan(self._table, ranges):
            if item is TICK:
                yield TICK
            elif test(item[1]):
                found.append(item)
        return found

    def _update(self, statement: ast.Update) -> Any:
        table, workspace = self._table, self._workspace
        assigned: list[tuple[Column, Typed | None]] = []
        for name, node in statement.assignments:
            column = table.columns.get(name.lower())
            if column is None:
                raise invalid(f"Unrecognized name: {name}")
            if table.is_key(column):
                raise invalid("Cannot modify a primary key column with UPDATE")
            if any(column is other for other, _ in assigned):
                raise invalid(f"Update item {name} assigned more than once")
            typed = None if isinstance(node, ast.DefaultValue) else self._writer.compile(node)
            if typed is not None and not typed.pending:
                _assignable(typed, column)
            assigned.append((column, typed))
        keys = columns_of(table, [part.name for part in table.key])
        positions = table.positions()
        places = [positions[column.name.lower()] for column in keys]
        found = yield from self._found(statement.where)
        columns = keys + [column for column, _ in assigned]
        changed: list[Row] = []
        for key, row in found:
            new = [
                workspace.default(column) if typed is None else self._assign(typed, column, row)
                for column, typed in assigned
            ]
            workspace.write(table, "update", columns, [row[place] for place in places] + new)
            after = workspace.get(table, key)
            assert after is not None
            changed.append(after)
        return changed

    def _delete(self, statement: ast.Delete) -> Any:
        found = yield from self._found(statement.where)
        for key, _ in found:
            self._workspace.delete(self._table, key)
        return [row for _, row in found]


def _assignable(typed: Typed, column: Column) -> Typed:
    found = coerce(typed, column.type.plain())
    if found is None:
        raise invalid(
            f"Value of type {shown(typed)} cannot be assigned to {column.name}, which has type {column.type.name()}"
        )
    return found
