"""A parser of the GoogleSQL DDL that the store knows. Text in, statements out; `schema.py` applies them.

    CREATE TABLE [IF NOT EXISTS] t (c type [NOT NULL] [DEFAULT (expr)] [OPTIONS (allow_commit_timestamp=…)], …)
        PRIMARY KEY (c [ASC|DESC], …) [, INTERLEAVE IN PARENT p [ON DELETE CASCADE | ON DELETE NO ACTION]]
        [, ROW DELETION POLICY (OLDER_THAN(c, INTERVAL n DAY))]
    CREATE [UNIQUE] [NULL_FILTERED] INDEX [IF NOT EXISTS] i ON t (c [ASC|DESC], …) [STORING (c, …)]
    CREATE CHANGE STREAM s [FOR ALL | FOR t[(c, …)], …] [OPTIONS (…)]
    ALTER TABLE t ADD [COLUMN] [IF NOT EXISTS] c … | DROP [COLUMN] c | ALTER [COLUMN] c type [NOT NULL]
        | ALTER [COLUMN] c SET OPTIONS (…) | ADD/REPLACE/DROP ROW DELETION POLICY …
    ALTER CHANGE STREAM s SET FOR … | SET OPTIONS (…) | DROP FOR ALL
    DROP TABLE | INDEX [IF EXISTS] x, DROP CHANGE STREAM s

Types: BOOL INT64 FLOAT64 STRING(n|MAX) BYTES(n|MAX) TIMESTAMP DATE JSON, ARRAY<…> of these. The rest is
UNIMPLEMENTED.
"""

from __future__ import annotations

from router.config.embedded.datatypes import SCALARS, Type, array_of
from router.config.embedded.ddl_statements import (
    AddColumn,
    AlterColumn,
    AlterStream,
    ColumnDef,
    CreateIndex,
    CreateStream,
    CreateTable,
    Drop,
    DropColumn,
    Option,
    SetDeletion,
    Statement,
)
from router.config.embedded.errors import StoreError, invalid, unsupported
from router.config.embedded.lexer import Token, tokenize
from router.config.embedded.limits import MAX_BYTES, MAX_STRING_CHARS


def parse(text: str) -> Statement:
    """Return the one statement of a text. INVALID_ARGUMENT where it is not well formed, UNIMPLEMENTED."""
    try:
        parser = _Parser(text)
        statement = parser.statement()
        parser.skip(";")
        parser.end()
    except StoreError as error:
        if error.code != "INVALID_ARGUMENT":
            raise
        raise invalid(f"Error parsing Spanner DDL statement: {text[:512]} : {error.text}") from error
    return statement


def parse_create_database(text: str) -> str:
    """Return the id in a CREATE DATABASE statement. INVALID_ARGUMENT."""
    try:
        parser = _Parser(text)
        parser.need("CREATE", "DATABASE")
        name = parser.name()
        parser.end()
    except StoreError as error:
        raise invalid(f"Error parsing Spanner DDL statement: {text[:512]} : {error.text}") from error
    return name


class _Parser:
    """Recursive descent, one method per production, one token of look-ahead (a few words at most)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._at = 0

    # -- tokens

    @property
    def _token(self) -> Token:
        return self._tokens[self._at]

    def _ahead(self, *words: str) -> bool:
        tokens = self._tokens[self._at : self._at + len(words)]
        return len(tokens) == len(words) and all(
            token.upper == word for token, word in zip(tokens, words, strict=True)
        )

    def skip(self, *words: str) -> bool:
        """Step over the words if they are next."""
        if self._ahead(*words):
            self._at += len(words)
            return True
        return False

    def need(self, *words: str) -> None:
        """Step over the words, which must be next."""
        for word in words:
            if not self.skip(word):
                raise self._wrong(f"'{word}'")

    def end(self) -> None:
        """Nothing may follow."""
        if self._token.kind != "end":
            raise self._wrong("'EOF'")

    def name(self) -> str:
        """Return an identifier."""
        token = self._token
        if token.kind not in {"name", "quoted"}:
            raise self._wrong("an identifier")
        self._at += 1
        if self._ahead("."):
            raise unsupported("a named schema")
        return str(token.value)

    def _integer(self) -> int:
        token = self._token
        if token.kind != "int":
            raise self._wrong("an integer")
        self._at += 1
        return int(token.text, 0)

    def _wrong(self, expected: str) -> StoreError:
        token = self._token
        line = self._text.count("\n", 0, token.at) + 1
        column = token.at - (self._text.rfind("\n", 0, token.at) + 1) + 1
        found = f"'{token.text}'" if token.text else "'EOF'"
        return invalid(f"Syntax error on line {line}, column {column}: Expecting {expected} but found {found}")

    # -- statements

    def statement(self) -> Statement:
        """Return the statement that starts here."""
        if self.skip("CREATE"):
            return self._create()
        if self.skip("ALTER", "TABLE"):
            return self._alter_table(self.name())
        if self.skip("ALTER", "CHANGE", "STREAM"):
            return self._alter_stream(self.name())
        if self.skip("DROP"):
            return self._drop()
        if self._token.upper in {"ALTER", "GRANT", "REVOKE", "ANALYZE", "RENAME"}:
            raise unsupported(f"the statement {self._words(2)}")
        raise self._wrong("a DDL statement")

    def _words(self, count: int) -> str:
        return " ".join(token.text for token in self._tokens[self._at : self._at + count])

    def _create(self) -> Statement:
        if self.skip("TABLE"):
            return self._create_table()
        if self.skip("CHANGE", "STREAM"):
            return self._create_stream()
        unique = self.skip("UNIQUE")
        null_filtered = self.skip("NULL_FILTERED")
        if self.skip("INDEX"):
            return self._create_index(unique, null_filtered)
        if unique or null_filtered:
            raise self._wrong("'INDEX'")
        if self._token.kind not in {"name", "quoted"}:
            raise self._wrong("what to create")
        raise unsupported(f"the statement CREATE {self._words(2)}")

    def _create_table(self) -> CreateTable:
        if_not_exists = self.skip("IF", "NOT", "EXISTS")
        name = self.name()
        columns: list[ColumnDef] = []
        key: list[tuple[str, bool]] | None = None
        self.need("(")
        while not self.skip(")"):
            if self._token.upper in {"CONSTRAINT", "FOREIGN", "CHECK"}:
                raise unsupported(f"the table constraint {self._token.upper}")
            if self.skip("PRIMARY", "KEY"):
                key = self._parts()
            else:
                columns.append(self._column())
            if not self.skip(","):
                self.need(")")
                break
        if self._ahead("PRIMARY"):
            self.need("PRIMARY", "KEY")
            key = self._parts()
        if key is None:
            key = [(column.name, False) for column in columns if column.is_key]
            if not key:
                raise self._wrong("'PRIMARY'")
        parent, cascade, deletion = None, False, None
        while self.skip(","):
            if self.skip("INTERLEAVE", "IN"):
                if not self.skip("PARENT"):
                    raise unsupported("INTERLEAVE IN without PARENT")
                parent = self.name()
                if self.skip("ON", "DELETE"):
                    cascade = self.skip("CASCADE")
                    if not cascade:
                        self.need("NO", "ACTION")
            elif self._ahead("ROW"):
                deletion = self._deletion()
            else:
                raise unsupported(f"the table clause {self._words(2)}")
        if self._ahead("OPTIONS"):
            raise unsupported("options of a table")
        return CreateTable(name, columns, key, parent, cascade, deletion, if_not_exists)

    def _column(self) -> ColumnDef:
        name, type_ = self.name(), self._type()
        not_null, commit_timestamp, default, is_key = False, None, None, False
        while True:
            if self.skip("NOT", "NULL"):
                not_null = True
            elif self._ahead("OPTIONS"):
                commit_timestamp = self._commit_timestamp()
            elif self.skip("PRIMARY", "KEY"):
                is_key = True
            elif self.skip("DEFAULT"):
                default = self._expression_text()
            elif self._token.upper in {"AS", "GENERATED", "HIDDEN", "CHECK", "ON"}:
                raise unsupported(f"the column clause {self._token.upper}")
            else:
                return ColumnDef(name, type_, not_null, commit_timestamp, default, is_key)

    def _expression_text(self) -> str:
        start = self._token.at
        self.need("(")
        depth = 1
        while depth:
            token = self._token
            if token.kind == "end":
                raise self._wrong("')'")
            depth += (token.text == "(") - (token.text == ")")
            self._at += 1
        return self._text[start + 1 : self._tokens[self._at - 1].at].strip()

    def _type(self) -> Type:
        token = self._token
        self.name()
        kind = token.upper
        if kind == "ARRAY":
            self.need("<")
            element = self._type()
            if element.element is not None:
                raise invalid("ARRAY of ARRAY is not a column type")
            self.need(">")
            return array_of(element)
        if kind in {"STRING", "BYTES"}:
            self.need("(")
            most = MAX_STRING_CHARS if kind == "STRING" else MAX_BYTES
            length = 0 if self.skip("MAX") else self._integer()
            if not self._ahead(")") or not 0 <= length <= most or (length == 0 and self._token_before() != "MAX"):
                raise invalid(f"the length of a {kind} column must be between 1 and {most}, or MAX")
            self.need(")")
            return Type("STRING" if kind == "STRING" else "BYTES", None, length)
        if kind in SCALARS:
            return SCALARS[kind]
        raise unsupported(f"the type {token.text}")

    def _token_before(self) -> str:
        return self._tokens[self._at - 1].upper

    def _parts(self) -> list[tuple[str, bool]]:
        self.need("(")
        parts: list[tuple[str, bool]] = []
        while not self.skip(")"):
            name = self.name()
            descending = self.skip("DESC")
            if not descending:
                self.skip("ASC")
            if self._ahead("NULLS"):
                raise unsupported("NULLS FIRST and NULLS LAST in a key")
            parts.append((name, descending))
            if not self.skip(","):
                self.need(")")
                break
        return parts

    def _names(self) -> list[str]:
        return [name for name, _ in self._parts()]

    def _deletion(self) -> tuple[str, int]:
        self.need("ROW", "DELETION", "POLICY", "(", "OLDER_THAN", "(")
        column = self.name()
        self.need(",", "INTERVAL")
        days = self._integer()
        self.need("DAY", ")", ")")
        return column, days

    def _create_index(self, unique: bool, null_filtered: bool) -> CreateIndex:
        if_not_exists = self.skip("IF", "NOT", "EXISTS")
        name = self.name()
        self.need("ON")
        table = self.name()
        parts = self._parts()
        storing = self._names() if self.skip("STORING") else []
        if self._token.kind != "end":
            raise unsupported(f"the index clause {self._words(3)}")
        return CreateIndex(name, table, parts, storing, unique, null_filtered, if_not_exists)

    def _create_stream(self) -> CreateStream:
        name = self.name()
        tables: dict[str, list[str] | None] | None = {}
        if self.skip("FOR"):
            tables = self._watched()
        options = self._options() if self._ahead("OPTIONS") else {}
        return CreateStream(name, tables, options)

    def _watched(self) -> dict[str, list[str] | None] | None:
        if self.skip("ALL"):
            return None
        tables: dict[str, list[str] | None] = {}
        while True:
            table = self.name()
            tables[table] = self._names() if self._ahead("(") else None
            if not self.skip(","):
                return tables

    def _options(self) -> dict[str, Option]:
        self.need("OPTIONS", "(")
        options: dict[str, Option] = {}
        while not self.skip(")"):
            name = self.name().lower()
            self.need("=")
            token = self._token
            value: Option
            if token.kind == "string":
                value = str(token.value)
            elif token.kind == "int":
                value = int(token.text, 0)
            elif token.upper in {"TRUE", "FALSE"}:
                value = token.upper == "TRUE"
            elif token.upper == "NULL":
                value = None
            else:
                raise self._wrong("a literal")
            self._at += 1
            options[name] = value
            if not self.skip(","):
                self.need(")")
                break
        return options

    def _commit_timestamp(self) -> bool:
        allowed = False
        for name, value in self._options().items():
            if name != "allow_commit_timestamp":
                raise invalid(f"Option: {name} is unknown.")
            if value not in {True, False, None} or (isinstance(value, int) and not isinstance(value, bool)):
                raise invalid("Unexpected value for option: allow_commit_timestamp.")
            allowed = bool(value)
        return allowed

    def _alter_table(self, table: str) -> Statement:
        if self._ahead("ADD", "ROW") or self._ahead("REPLACE", "ROW"):
            self._at += 1
            return SetDeletion(table, self._deletion())
        if self.skip("DROP", "ROW", "DELETION", "POLICY"):
            return SetDeletion(table, None)
        if self._token.upper == "ADD" and self._tokens[self._at + 1].upper in {
            "CONSTRAINT",
            "FOREIGN",
            "CHECK",
            "SYNONYM",
        }:
            raise unsupported(f"ALTER TABLE {self._words(2)}")
        if self.skip("ADD"):
            self.skip("COLUMN")
            if_not_exists = self.skip("IF", "NOT", "EXISTS")
            return AddColumn(table, self._column(), if_not_exists)
        if self._ahead("DROP", "CONSTRAINT"):
            raise unsupported("ALTER TABLE DROP CONSTRAINT")
        if self.skip("DROP"):
            self.skip("COLUMN")
            return DropColumn(table, self.name())
        if self.skip("ALTER"):
            self.skip("COLUMN")
            column = self.name()
            if self._ahead("SET", "OPTIONS"):
                self._at += 1
                return AlterColumn(table, column, None, commit_timestamp=self._commit_timestamp())
            if self._token.upper in {"SET", "DROP"}:
                raise unsupported(f"ALTER COLUMN {self._words(2)}")
            type_ = self._type()
            not_null = self.skip("NOT", "NULL")
            allowed = self._commit_timestamp() if self._ahead("OPTIONS") else None
            return AlterColumn(table, column, type_, not_null, allowed)
        raise unsupported(f"ALTER TABLE … {self._words(2)}")

    def _alter_stream(self, name: str) -> AlterStream:
        if self.skip("SET", "FOR"):
            tables = self._watched()
            return AlterStream(name, tables, watch_all=tables is None)
        if self._ahead("SET", "OPTIONS"):
            self._at += 1
            return AlterStream(name, options=self._options())
        self.need("DROP", "FOR", "ALL")
        return AlterStream(name, {})

    def _drop(self) -> Drop:
        for what in (("TABLE",), ("INDEX",), ("CHANGE", "STREAM")):
            if self.skip(*what):
                if_exists = self.skip("IF", "EXISTS")
                return Drop(" ".join(what), self.name(), if_exists)
        raise unsupported(f"the statement DROP {self._words(2)}")
