"""Tokens to syntax tree, by recursive descent.

INVALID_ARGUMENT where the text is not SQL, UNIMPLEMENTED where it is SQL that the store does not know; it never
guesses which of two a construct may be.

"""

from __future__ import annotations

from typing import Literal, cast

from router.config.embedded.errors import StoreError, invalid, unsupported
from router.config.embedded.lexer import RESERVED
from router.config.embedded.sql import ast
from router.config.embedded.sql.expression_parser import ExpressionParser


def parse(sql: str) -> ast.Statement:
    """Return the statement of a text."""
    return _Parser(sql).whole()


def parse_expression(text: str) -> ast.Expression:
    """Return an expression alone, as a DEFAULT clause has it."""
    return ExpressionParser(text).whole_expression()


class _Parser(ExpressionParser):
    """One statement."""

    # -- statements

    def whole(self) -> ast.Statement:
        """Return the statement, after which only a semicolon may stand."""
        statement = self._statement()
        self._take(";")
        if self._token.kind != "end":
            raise self._left_over()
        return statement

    def _left_over(self) -> StoreError:
        for words in (
            "UNION",
            "INTERSECT",
            "EXCEPT",
            "WINDOW",
            "QUALIFY",
            "TABLESAMPLE",
            "FOR",
            "USING",
            "ON",
            "|",
        ):
            if self._is(words):
                return unsupported(f"{words} here")
        return self._unexpected("Expected end of input but got")

    def _statement(self) -> ast.Statement:
        hint = self._hint()
        if hint:
            raise unsupported("a statement hint")
        if self._is("SELECT"):
            return self._select()
        if self._take("INSERT"):
            return self._insert()
        if self._take("UPDATE"):
            return self._update()
        if self._take("DELETE"):
            return self._delete()
        if self._is("WITH"):
            raise unsupported("WITH")
        if self._is("("):
            raise unsupported("a query in parentheses")
        for word in ("FROM", "GRAPH", "CALL", "MERGE", "EXPLAIN", "SHOW"):
            if self._is(word):
                raise unsupported(f"the statement {word}")
        raise self._unexpected()

    def _select(self) -> ast.Select:
        self._need("SELECT")
        distinct = self._take("DISTINCT")
        if not distinct:
            self._take("ALL")
        if self._is("AS"):
            raise unsupported("SELECT AS")
        items = self._items()
        table: ast.TableRef | None = None
        joins: list[ast.Join] = []
        if self._take("FROM"):
            table = self._table_ref()
            joins = self._joins()
        where = self._expression() if self._take("WHERE") else None
        group_by: tuple[ast.Expression, ...] = ()
        if self._take("GROUP"):
            if self._hint():
                raise unsupported("a hint of GROUP BY")
            self._need("BY")
            if self._is("ROLLUP") or self._is("CUBE") or self._is("GROUPING") or self._is("ALL"):
                raise unsupported(f"GROUP BY {self._token.upper}")
            group_by = self._list(self._expression)
        having = self._expression() if self._take("HAVING") else None
        order_by: tuple[ast.OrderItem, ...] = ()
        if self._take("ORDER"):
            self._need("BY")
            order_by = self._list(self._order_item)
        limit = offset = None
        if self._take("LIMIT"):
            limit = self._primary()
            if self._take("OFFSET"):
                offset = self._primary()
        return ast.Select(items, table, tuple(joins), where, group_by, having, order_by, limit, offset, distinct)

    def _items(self) -> tuple[ast.Item, ...]:
        items = [self._item()]
        while self._take(","):
            if self._is("FROM") or self._token.kind == "end":
                break  # a trailing comma is allowed
            items.append(self._item())
        return tuple(items)

    def _item(self) -> ast.Item:
        if self._take("*"):
            self._no_star_modifier()
            return ast.Item(ast.Star())
        token, after, last = (self._tokens[min(self._at + offset, len(self._tokens) - 1)] for offset in range(3))
        if token.kind in {"name", "quoted"} and after.text == "." and last.text == "*":
            table = self._name()
            self._at += 2
            self._no_star_modifier()
            return ast.Item(ast.Star(table.lower()))
        expression = self._expression()
        if self._take("AS"):
            return ast.Item(expression, self._name())
        if self._token.kind == "quoted" or (self._token.kind == "name" and self._token.upper not in RESERVED):
            return ast.Item(expression, self._name())
        return ast.Item(expression)

    def _no_star_modifier(self) -> None:
        if self._is("EXCEPT") or self._is("REPLACE", "("):
            raise unsupported(f"* {self._token.upper}")

    def _order_item(self) -> ast.OrderItem:
        expression = self._expression()
        if self._is("COLLATE"):
            raise unsupported("COLLATE")
        descending = self._take("DESC")
        if not descending:
            self._take("ASC")
        if self._is("NULLS"):
            raise unsupported("NULLS FIRST and NULLS LAST")
        return ast.OrderItem(expression, descending)

    def _hint(self) -> dict[str, str]:
        if not self._is("@", "{"):
            return {}
        self._at += 2
        hints: dict[str, str] = {}
        while True:
            name = self._name().upper()
            if self._is("."):
                raise unsupported("a hint of another engine")
            self._need("=")
            token = self._token
            if token.kind == "end":
                raise self._unexpected()
            hints[name] = str(token.value)
            self._at += 1
            if self._take("}"):
                return hints
            self._need(",")

    def _table_ref(self) -> ast.TableRef:
        if self._is("("):
            raise unsupported("a subquery in FROM")
        if self._is("UNNEST"):
            raise unsupported("UNNEST in FROM")
        if self._is("LATERAL"):
            raise unsupported("LATERAL")
        schema, name = None, self._name()
        if self._take("."):
            schema, name = name, self._name()
            if self._is("."):
                raise unsupported("a name of three parts")
        if self._is("("):
            raise unsupported(f"the table function {name}")
        hints = self._hint()
        index = hints.pop("FORCE_INDEX", None)
        if hints:
            raise unsupported(f"the table hint {next(iter(hints))}")
        alias = self._alias()
        return ast.TableRef(name, alias, schema, index)

    def _alias(self) -> str | None:
        if self._take("AS"):
            return self._name()
        if self._token.kind == "quoted" or (self._token.kind == "name" and self._token.upper not in RESERVED):
            return self._name()
        return None

    def _joins(self) -> list[ast.Join]:
        joins: list[ast.Join] = []
        while True:
            if self._is(","):
                raise unsupported("a comma in FROM; write JOIN")
            if self._is("NATURAL") or self._is("RIGHT") or self._is("FULL"):
                raise unsupported(f"{self._token.upper} JOIN")
            outer = cross = False
            if self._take("LEFT"):
                self._take("OUTER")
                outer = True
            elif self._take("CROSS"):
                cross = True
            elif not self._take("INNER") and not self._is("JOIN"):
                return joins
            if self._is("HASH") or self._is("LOOKUP"):
                raise unsupported("a join method")
            self._need("JOIN")
            if self._hint():
                raise unsupported("a join hint")
            table = self._table_ref()
            if self._is("USING"):
                raise unsupported("JOIN … USING; write ON")
            if cross:
                joins.append(ast.Join(table, None))
                continue
            self._need("ON")
            joins.append(ast.Join(table, self._expression(), outer))

    # -- DML

    def _insert(self) -> ast.Insert:
        mode = ""
        if self._take("OR"):
            if not self._is("IGNORE") and not self._is("UPDATE"):
                raise self._unexpected()
            mode = self._token.upper
            self._at += 1
        self._take("INTO")
        table = self._name()
        self._no_schema()
        if not self._is("("):
            raise self._unexpected("INSERT needs a list of columns, not")
        self._need("(")
        columns = self._list(self._name)
        self._need(")")
        mode_ = cast("Literal['', 'IGNORE', 'UPDATE']", mode)
        if self._is("SELECT"):
            query = self._select()
            return ast.Insert(table, columns, (), query, mode_, self._returning())
        self._need("VALUES")
        rows = self._list(self._row)
        if self._is("ON"):
            raise unsupported("INSERT … ON CONFLICT")
        return ast.Insert(table, columns, rows, None, mode_, self._returning())

    def _row(self) -> tuple[ast.Expression, ...]:
        self._need("(")
        values = self._list(self._assigned)
        self._need(")")
        return values

    def _assigned(self) -> ast.Expression:
        return ast.DefaultValue() if self._take("DEFAULT") else self._expression()

    def _no_schema(self) -> None:
        if self._is("."):
            raise unsupported("a named schema")
        if self._hint():
            raise unsupported("a table hint in DML")

    def _target(self) -> ast.TableRef:
        name = self._name()
        self._no_schema()
        return ast.TableRef(name, self._alias())

    def _update(self) -> ast.Update:
        table = self._target()
        self._need("SET")
        assignments = self._list(lambda: self._assignment(table))
        if self._is("FROM"):
            raise unsupported("UPDATE … FROM")
        if not self._take("WHERE"):
            raise invalid("UPDATE must have a WHERE clause [at 1:1]")
        return ast.Update(table, assignments, self._expression(), self._returning())

    def _assignment(self, table: ast.TableRef) -> tuple[str, ast.Expression]:
        column = self._name()
        if self._take("."):
            if column.lower() != (table.alias or table.name).lower():
                raise unsupported("UPDATE of a part of a column")
            column = self._name()
        self._need("=")
        return column, self._assigned()

    def _delete(self) -> ast.Delete:
        self._take("FROM")
        table = self._target()
        if not self._take("WHERE"):
            raise invalid("DELETE must have a WHERE clause [at 1:1]")
        return ast.Delete(table, self._expression(), self._returning())

    def _returning(self) -> tuple[ast.Item, ...]:
        if not self._take("THEN"):
            return ()
        self._need("RETURN")
        if self._is("WITH"):
            raise unsupported("THEN RETURN WITH ACTION")
        return self._items()
