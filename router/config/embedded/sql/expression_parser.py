"""Expressions from tokens, and what every production needs to step through tokens.

Precedence, loosest first: OR · AND · NOT · comparisons, IS, IN, BETWEEN, LIKE · + - and || · * / · unary signs.
(GoogleSQL has || level with * and /; no operand can take both, so the answers are the same.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeVar, cast

from router.config.embedded.errors import StoreError, invalid, unsupported
from router.config.embedded.lexer import RESERVED, Token, syntax, tokenize
from router.config.embedded.limits import MAX_SQL_DEPTH
from router.config.embedded.sql import ast
from router.config.embedded.sql.functions import UNIT_NS

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

_COMPARISONS: Final = {"=": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_UNITS: Final = frozenset(UNIT_NS) | {"WEEK", "MONTH", "QUARTER", "YEAR"}


class ExpressionParser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, sql: str) -> None:
        self._sql = sql
        self._tokens = tokenize(sql)
        self._at = 0
        self._depth = 0

    # -- tokens

    @property
    def _token(self) -> Token:
        return self._tokens[self._at]

    def _is(self, *words: str) -> bool:
        for offset, word in enumerate(words):
            at = self._at + offset
            if at >= len(self._tokens) or self._tokens[at].upper != word:
                return False
        return True

    def _take(self, *words: str) -> bool:
        if self._is(*words):
            self._at += len(words)
            return True
        return False

    def _need(self, word: str) -> None:
        if not self._take(word):
            raise self._unexpected(f"Expected {_shown(word)} but got")

    def _unexpected(self, lead: str = "Unexpected") -> StoreError:
        token = self._token
        if token.kind == "end":
            what = "end of statement"
        elif token.kind == "name":
            what = f"keyword {token.upper}" if token.upper in RESERVED else f'identifier "{token.text}"'
        elif token.kind == "punct":
            what = f'"{token.text}"'
        else:
            what = f"{token.kind} literal {token.text[:64]}"
        return syntax(self._sql, token.at, f"{lead} {what}")

    def _name(self) -> str:
        token = self._token
        if token.kind == "quoted" or (token.kind == "name" and token.upper not in RESERVED):
            self._at += 1
            return str(token.value)
        raise self._unexpected()

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_SQL_DEPTH:
            raise invalid(f"Query is nested deeper than {MAX_SQL_DEPTH}")

    def _list(self, one: Callable[[], _T]) -> tuple[_T, ...]:
        items = [one()]
        while self._take(","):
            items.append(one())
        return tuple(items)

    def whole_expression(self) -> ast.Expression:
        """Return the expression, after which nothing may stand."""
        expression = self._expression()
        if self._token.kind != "end":
            raise self._unexpected("Expected end of input but got")
        return expression

    # -- expressions

    def _expression(self) -> ast.Expression:
        self._deeper()
        left = self._and()
        while self._take("OR"):
            left = ast.Binary("OR", left, self._and())
        self._depth -= 1
        return left

    def _and(self) -> ast.Expression:
        left = self._not()
        while self._take("AND"):
            left = ast.Binary("AND", left, self._not())
        return left

    def _not(self) -> ast.Expression:
        if self._take("NOT"):
            self._deeper()
            operand = self._not()
            self._depth -= 1
            return ast.Unary("NOT", operand)
        return self._comparison()

    def _comparison(self) -> ast.Expression:
        left = self._sum()
        token = self._token
        if token.text in _COMPARISONS and token.kind == "punct":
            self._at += 1
            left = ast.Binary(_COMPARISONS[token.text], left, self._sum())
        elif self._take("IS"):
            return self._is_test(left)
        else:
            negated = self._is("NOT") and self._tokens[self._at + 1].upper in {"IN", "BETWEEN", "LIKE"}
            if negated:
                self._at += 1
            if self._take("IN"):
                left = self._in(left)
            elif self._take("BETWEEN"):
                low = self._sum()
                self._need("AND")
                left = ast.Between(left, low, self._sum())
            elif self._take("LIKE"):
                if self._is("ANY") or self._is("ALL") or self._is("SOME"):
                    raise unsupported(f"LIKE {self._token.upper}")
                left = ast.Binary("LIKE", left, self._sum())
            else:
                return left
            if negated:
                left = ast.Unary("NOT", left)
        # Comparisons do not associate: a = b = c is no SQL.
        if self._token.text in _COMPARISONS or self._is("IN") or self._is("BETWEEN") or self._is("LIKE"):
            raise self._unexpected()
        return left

    def _is_test(self, left: ast.Expression) -> ast.Expression:
        negated = self._take("NOT")
        what = self._token.upper
        if what == "DISTINCT":
            raise unsupported("IS DISTINCT FROM")
        if what not in {"NULL", "TRUE", "FALSE"}:
            raise self._unexpected()
        self._at += 1
        test = ast.IsTest(left, cast("Literal['NULL', 'TRUE', 'FALSE']", what))
        return ast.Unary("NOT", test) if negated else test

    def _in(self, left: ast.Expression) -> ast.Expression:
        if self._take("UNNEST"):
            self._need("(")
            array = self._expression()
            self._need(")")
            return ast.In(left, (), array)
        self._need("(")
        if self._is("SELECT") or self._is("WITH"):
            raise unsupported("IN with a subquery")
        items = self._list(self._expression)
        self._need(")")
        return ast.In(left, items)

    def _sum(self) -> ast.Expression:
        left = self._product()
        while self._token.text in {"+", "-", "||"} and self._token.kind == "punct":
            op = self._token.text
            self._at += 1
            left = ast.Binary(op, left, self._product())
        if self._token.kind == "punct" and self._token.text in {"&", "|", "^", "<<", ">>"}:
            raise unsupported(f"the operator {self._token.text}")
        return left

    def _product(self) -> ast.Expression:
        left = self._sign()
        while self._token.kind == "punct" and self._token.text in {"*", "/"}:
            op = self._token.text
            self._at += 1
            left = ast.Binary(op, left, self._sign())
        return left

    def _sign(self) -> ast.Expression:
        if self._token.kind == "punct" and self._token.text in {"-", "+"}:
            op = self._token.text
            self._at += 1
            token = self._token
            if op == "-" and token.kind == "int" and int(token.text, 0) == 1 << 63:
                self._at += 1
                return ast.Literal("INT64", -(1 << 63))
            self._deeper()
            operand = self._sign()
            self._depth -= 1
            return ast.Unary(op, operand)
        if self._is("~"):
            raise unsupported("the operator ~")
        operand = self._primary()
        if self._is("["):
            raise unsupported("an array's element")
        return operand

    def _primary(self) -> ast.Expression:
        token = self._token
        simple = self._literal(token)
        if simple is not None:
            return simple
        if token.text == "(":
            self._at += 1
            if self._is("SELECT") or self._is("WITH"):
                raise unsupported("a subquery")
            inner = self._expression()
            if self._is(","):
                raise unsupported("a STRUCT")
            self._need(")")
            return inner
        if token.text == "[":
            self._at += 1
            items = () if self._is("]") else self._list(self._expression)
            self._need("]")
            return ast.ArrayLiteral(items)
        if token.kind == "name":
            if token.upper in {
                "CASE",
                "CAST",
                "INTERVAL",
                "EXISTS",
                "ARRAY",
                "STRUCT",
                "EXTRACT",
                "NEW",
                "SAFE_CAST",
            }:
                return self._keyword(token)
            following = self._tokens[self._at + 1].text
            if following == "(" and (token.upper not in RESERVED or token.upper in {"IF", "LEFT", "RIGHT"}):
                return self._call(token.upper)
        elif token.kind != "quoted":
            if token.text in {"@", "?"}:
                raise unsupported("a system variable or an unnamed parameter")
            raise self._unexpected()
        return self._path()

    def _path(self) -> ast.Expression:
        at = self._token.at
        parts = [self._name()]
        while self._take("."):
            token = self._token
            if token.kind not in {"name", "quoted"}:
                raise self._unexpected()
            parts.append(str(token.value))
            self._at += 1
        if self._is("("):
            raise unsupported(f"the function {'.'.join(parts)}")
        if len(parts) > 2:
            raise unsupported(f"the path {'.'.join(parts)}")
        return ast.Name(tuple(part.lower() for part in parts), parts[-1], at)

    def _literal(self, token: Token) -> ast.Expression | None:
        following = self._tokens[self._at + 1] if token.kind == "name" else None
        literal: ast.Expression | None = None
        if token.kind == "int":
            number = int(token.text, 0)
            if number >= 1 << 63:
                raise invalid(f"Invalid integer literal: {token.text[:64]}")
            literal = ast.Literal("INT64", number)
        elif token.kind == "float":
            literal = ast.Literal("FLOAT64", float(token.text))
        elif token.kind == "string":
            literal = ast.Literal("STRING", cast("str", token.value))
        elif token.kind == "bytes":
            literal = ast.Literal("BYTES", cast("bytes", token.value))
        elif token.kind == "param":
            literal = ast.Param(str(token.value))
        elif token.upper in {"TRUE", "FALSE"}:
            literal = ast.Literal("BOOL", token.upper == "TRUE")
        elif token.upper == "NULL":
            literal = ast.Literal("NULL", None)
        elif following is not None and following.kind == "string":
            if token.upper in {"TIMESTAMP", "DATE", "JSON"}:
                self._at += 1
                literal = ast.Literal(token.upper, str(following.value))
            elif token.upper in {"NUMERIC", "BIGNUMERIC", "DATETIME", "TIME"}:
                raise unsupported(f"a {token.upper} literal")
        if literal is not None:
            self._at += 1
            if (
                self._token.kind == "string"
                and isinstance(literal, ast.Literal)
                and literal.kind in {"STRING", "BYTES"}
            ):
                raise self._unexpected()
        return literal

    def _keyword(self, token: Token) -> ast.Expression:
        if token.upper == "CASE":
            return self._case()
        if token.upper == "CAST":
            self._at += 1
            self._need("(")
            operand = self._expression()
            self._need("AS")
            kind = self._token.upper
            self._name()
            if not self._is(")"):
                raise unsupported(f"CAST AS {kind} with more")
            self._need(")")
            return ast.Cast(operand, kind)
        if token.upper == "INTERVAL":
            self._at += 1
            amount = self._sum()
            unit = self._token.upper
            if unit not in _UNITS:
                raise self._unexpected()
            self._at += 1
            return ast.Interval(amount, unit)
        raise unsupported(f"{token.upper} in an expression")

    def _case(self) -> ast.Case:
        self._need("CASE")
        self._deeper()
        operand = None if self._is("WHEN") else self._expression()
        branches: list[tuple[ast.Expression, ast.Expression]] = []
        while self._take("WHEN"):
            condition = self._expression()
            self._need("THEN")
            branches.append((condition, self._expression()))
        if not branches:
            raise self._unexpected()
        otherwise = self._expression() if self._take("ELSE") else None
        self._need("END")
        self._depth -= 1
        return ast.Case(operand, tuple(branches), otherwise)

    def _call(self, name: str) -> ast.Expression:
        self._at += 1
        self._need("(")
        if name == "COUNT" and self._take("*"):
            self._need(")")
            self._no_window()
            return ast.Call(name, (ast.Star(),))
        distinct = self._take("DISTINCT")
        arguments: tuple[ast.Expression, ...] = ()
        if not self._is(")"):
            arguments = self._list(self._argument)
        for word in ("IGNORE", "RESPECT", "HAVING", "ORDER", "LIMIT"):
            if self._is(word):
                raise unsupported(f"{word} in the call of {name}")
        if self._is("=>"):
            raise unsupported("named arguments")
        self._need(")")
        self._no_window()
        return ast.Call(name, arguments, distinct)

    def _argument(self) -> ast.Expression:
        if self._token.upper in _UNITS and self._tokens[self._at + 1].text in {")", ","}:
            unit = self._token.upper
            self._at += 1
            return ast.Unit(unit)
        if self._is("SELECT"):
            raise unsupported("a subquery")
        return self._expression()

    def _no_window(self) -> None:
        if self._is("OVER"):
            raise unsupported("a window function")


def _shown(word: str) -> str:
    return f"keyword {word}" if word.isalpha() else f'"{word}"'
