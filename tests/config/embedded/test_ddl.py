"""DDL: what is understood, what is refused and how, and that a schema's text makes the same schema."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.embedded import schema, schema_text
from router.config.embedded.catalog import Catalog
from router.config.embedded.ddl import parse
from router.config.embedded.errors import StoreError

BASE = [
    "CREATE TABLE P (A STRING(MAX), V INT64, `Order` ARRAY<STRING(9)>, U TIMESTAMP OPTIONS (allow_commit_timestamp = true)) PRIMARY KEY (A)",
    "CREATE TABLE C (A STRING(MAX), N INT64 NOT NULL DEFAULT (7), B BYTES(32)) PRIMARY KEY (A, N DESC), INTERLEAVE IN PARENT P ON DELETE CASCADE,"
    " ROW DELETION POLICY (OLDER_THAN(T, INTERVAL 3 DAY))".replace("OLDER_THAN(T", "OLDER_THAN(T"),
    "CREATE UNIQUE NULL_FILTERED INDEX I ON P(V DESC) STORING (U)",
    "CREATE CHANGE STREAM S FOR P(V, U), C OPTIONS (retention_period = '36h', value_capture_type = 'NEW_ROW')",
    "CREATE CHANGE STREAM EverythingElse FOR ALL",
]  # fmt: skip
BASE[1] = BASE[1].replace("B BYTES(32))", "B BYTES(32), T TIMESTAMP)")


def build(statements, catalog=None):
    catalog = catalog or Catalog()
    for statement in statements:
        catalog = schema.apply(catalog, parse(statement), lambda _: None)
    return catalog


@pytest.fixture
def base():
    return build(BASE)


def test_the_text_of_a_schema_makes_the_same_schema(base):
    again = build(schema_text.statements(base))
    assert schema_text.statements(again) == schema_text.statements(base)
    assert again.streams["s"].retention_s == 36 * 3600
    assert again.tables["c"].deletion.days == 3
    assert again.tables["c"].columns["n"].default == "7"
    assert again.indexes["i"].null_filtered
    assert "`Order` ARRAY<STRING(9)>" in schema_text.statements(base)[0]


CHANGES = [
    ("ALTER TABLE P ADD COLUMN W INT64", lambda c: "w" in c.tables["p"].columns),
    ("ALTER TABLE P ADD COLUMN IF NOT EXISTS V INT64", lambda c: len(c.tables["p"].columns) == 4),
    ("ALTER TABLE P DROP COLUMN `Order`", lambda c: "order" not in c.tables["p"].columns),
    ("ALTER TABLE C ALTER COLUMN B BYTES(MAX) NOT NULL", lambda c: c.tables["c"].columns["b"].not_null),
    ("ALTER TABLE P ALTER COLUMN U SET OPTIONS (allow_commit_timestamp = null)", lambda c: not c.tables["p"].columns["u"].commit_timestamp),
    ("ALTER TABLE C DROP ROW DELETION POLICY", lambda c: c.tables["c"].deletion is None),
    ("ALTER TABLE P ADD ROW DELETION POLICY (OLDER_THAN(U, INTERVAL 1 DAY))", lambda c: c.tables["p"].deletion.column == "U"),
    ("ALTER CHANGE STREAM S SET FOR ALL", lambda c: c.streams["s"].tables is None),
    ("ALTER CHANGE STREAM S SET FOR C", lambda c: list(c.streams["s"].tables) == ["c"]),
    ("ALTER CHANGE STREAM S DROP FOR ALL", lambda c: c.streams["s"].tables == {}),
    ("ALTER CHANGE STREAM S SET OPTIONS (retention_period = '2d', exclude_insert = true)", lambda c: c.streams["s"].excludes == {"INSERT"}),
    ("DROP INDEX I", lambda c: not c.indexes),
    ("DROP INDEX IF EXISTS Nope", lambda c: True),
    ("drop change stream s", lambda c: "s" not in c.streams),
    ("CREATE TABLE IF NOT EXISTS P (X INT64) PRIMARY KEY (X)", lambda c: "x" not in c.tables["p"].columns),
    ("CREATE TABLE Q (X INT64 PRIMARY KEY, Y INT64);", lambda c: [k.name for k in c.tables["q"].key] == ["X"]),
    ("CREATE TABLE Q (X INT64, Y BOOL,) PRIMARY KEY ()", lambda c: c.tables["q"].key == ()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "check"), CHANGES, ids=[text for text, _ in CHANGES])
def test_changes(base, text, check):
    assert check(build([text], base))


REFUSED = {
    "INVALID_ARGUMENT": [
        "", "CREATE", "CREATE TABLE", "CREATE TABLE Q (A INT64", "CREATE TABLE Q (A INT64) PRIMARY KEY (A) x", "CREATE TABLE Q (A STRING) PRIMARY KEY (A)", "CREATE TABLE Q (A STRING(0)) PRIMARY KEY (A)",
        "CREATE TABLE Q (A STRING(99999999)) PRIMARY KEY (A)", "CREATE TABLE Q (A ARRAY<ARRAY<INT64>>) PRIMARY KEY ()", "CREATE TABLE Q (A INT64)", "CREATE INDEX J ON P(Nope)", "ALTER TABLE P DROP COLUMN A", "SELECT 1",
        "CREATE CHANGE STREAM X FOR P OPTIONS (retention_period = '1y')", "CREATE CHANGE STREAM X FOR P OPTIONS (value_capture_type = 'X')", "CREATE CHANGE STREAM X FOR P OPTIONS (nope = 1)", "CREATE TABLE Q (A TIMESTAMP OPTIONS (nope = true)) PRIMARY KEY (A)",
        "CREATE TABLE `a-b` (A INT64) PRIMARY KEY (A)", "DROP TABLE P; DROP TABLE C", "CREATE TABLE Q (A JSON) PRIMARY KEY (A)", "CREATE INDEX J ON P(`Order`)",
    ],
    "FAILED_PRECONDITION": [
        "CREATE TABLE p (A INT64) PRIMARY KEY (A)", "CREATE INDEX S ON P(V)", "CREATE CHANGE STREAM I FOR ALL", "CREATE TABLE Q (A INT64, a INT64) PRIMARY KEY (A)", "CREATE TABLE Q (A INT64) PRIMARY KEY (B)",
        "CREATE TABLE Q (A INT64) PRIMARY KEY (A), INTERLEAVE IN PARENT P", "CREATE TABLE Q (B STRING(MAX)) PRIMARY KEY (B), INTERLEAVE IN PARENT P", "CREATE TABLE Q (A STRING(MAX) NOT NULL, B INT64) PRIMARY KEY (A, B), INTERLEAVE IN PARENT P",
        "DROP TABLE P", "DROP TABLE C", "ALTER TABLE P DROP COLUMN V", "ALTER TABLE P DROP COLUMN U", "ALTER TABLE C DROP COLUMN T", "ALTER TABLE P ADD COLUMN v INT64", "ALTER TABLE C ALTER COLUMN B STRING(MAX)",
        "CREATE CHANGE STREAM X FOR Nope", "CREATE CHANGE STREAM X FOR P(A)", "CREATE TABLE Q (A INT64 OPTIONS (allow_commit_timestamp = true)) PRIMARY KEY (A)", "CREATE TABLE Q (A INT64, T INT64) PRIMARY KEY (A), ROW DELETION POLICY (OLDER_THAN(T, INTERVAL 1 DAY))",
        "CREATE INDEX J ON P(A, A)",
    ],
    "NOT_FOUND": ["DROP TABLE Nope", "DROP INDEX Nope", "DROP CHANGE STREAM Nope", "ALTER TABLE Nope ADD COLUMN A INT64", "CREATE INDEX J ON Nope(A)", "ALTER CHANGE STREAM Nope DROP FOR ALL", "ALTER TABLE P DROP COLUMN Nope"],
    "UNIMPLEMENTED": [
        "CREATE VIEW V SQL SECURITY INVOKER AS SELECT 1", "CREATE TABLE Q (A NUMERIC) PRIMARY KEY (A)", "CREATE TABLE Q (A FLOAT32) PRIMARY KEY (A)", "CREATE TABLE Q (A INT64 AS (1) STORED) PRIMARY KEY (A)", "CREATE TABLE Q (A INT64, CHECK (A > 0)) PRIMARY KEY (A)",
        "CREATE TABLE Q (A INT64, FOREIGN KEY (A) REFERENCES P (V)) PRIMARY KEY (A)", "CREATE TABLE s.Q (A INT64) PRIMARY KEY (A)", "CREATE SEQUENCE Q OPTIONS (sequence_kind='bit_reversed_positive')", "ALTER DATABASE d SET OPTIONS (x = 1)", "GRANT SELECT ON TABLE P TO ROLE r",
        "CREATE INDEX J ON P(V), INTERLEAVE IN P", "ALTER TABLE P ADD CONSTRAINT x CHECK (TRUE)", "ALTER TABLE P ADD COLUMN W INT64 NOT NULL", "ALTER TABLE P ALTER COLUMN V SET DEFAULT (1)", "CREATE TABLE Q (A INT64) PRIMARY KEY (A), INTERLEAVE IN P", "ANALYZE",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in REFUSED.items() for text in texts])
def test_refusals(base, code, text):
    with pytest.raises(StoreError) as refused:
        build([text], base)
    assert refused.value.code == code, refused.value.text


def test_a_table_has_at_most_three_streams(base):
    base = build(["CREATE CHANGE STREAM S3 FOR P"], base)
    with pytest.raises(StoreError, match="not allowed to have"):
        build(["CREATE CHANGE STREAM S4 FOR P"], base)


@given(st.text("CREATE TABLE INDEX()<>,;'\"`@.=1P\\\n\0 ", max_size=80))
def test_any_text_is_parsed_or_refused(text):
    try:
        parse(text)
    except StoreError as error:
        if error.code not in {"INVALID_ARGUMENT", "UNIMPLEMENTED"}:
            raise
