"""The SQL subset: what it answers, what it refuses by name, and that it never guesses. Answers agree with Google's emulator
(tests/contract/store asks both)."""

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from router.config.embedded.errors import StoreError
from router.config.embedded.limits import MAX_SQL_DEPTH
from router.config.embedded.sql.parser import parse


@pytest.fixture
def sql(make_bench):
    bench = make_bench(None, schema=[
        "CREATE TABLE P (A STRING(MAX), V INT64, F FLOAT64, T TIMESTAMP, J JSON, G ARRAY<INT64>, B BOOL) PRIMARY KEY (A)",
        "CREATE TABLE C (A STRING(MAX), N INT64, W INT64) PRIMARY KEY (A, N), INTERLEAVE IN PARENT P ON DELETE CASCADE",
        "CREATE INDEX ByV ON P(V DESC)",
        "CREATE CHANGE STREAM S FOR P",
    ])  # fmt: skip
    bench.put("P", ["A", "V", "F", "T", "G", "B"],
              ["a", 1, 1.5, "2026-01-01T00:00:00Z", ["1", "2"], True], ["b", 2, "NaN", None, None, False], ["c", None, -2.0, None, [], None])  # fmt: skip
    bench.put("C", ["A", "N", "W"], ["a", 1, 10], ["a", 2, 20], ["b", 1, 30])
    return bench


def params(**values):
    message = struct_pb2.Struct()
    message.update(values)
    return message.fields


ANSWERS = {
    "SELECT 1, 'a', TRUE, NULL, b'x', 1.5": [(1, "a", 1, None, b"x", 1.5)],
    "SELECT A FROM P": [("a",), ("b",), ("c",)],
    "SELECT p.A, v FROM P AS p WHERE P.V >= 1 ORDER BY V DESC": [("b", 2), ("a", 1)],
    "SELECT A FROM P ORDER BY V": [("c",), ("a",), ("b",)],
    "SELECT A FROM P ORDER BY V DESC": [("b",), ("a",), ("c",)],
    "SELECT A FROM P ORDER BY F": [("b",), ("c",), ("a",)],
    "SELECT A FROM P WHERE V IS NULL OR V = 2": [("b",), ("c",)],
    "SELECT A FROM P WHERE NOT (V = 1)": [("b",)],
    "SELECT A FROM P WHERE V IN (1, NULL)": [("a",)],
    "SELECT A FROM P WHERE V NOT IN (1, NULL)": [],
    "SELECT A FROM P WHERE V NOT IN (1)": [("b",)],
    "SELECT A FROM P WHERE A IN UNNEST(['a', 'c'])": [("a",), ("c",)],
    "SELECT A FROM P WHERE V IN UNNEST([])": [],
    "SELECT A FROM P WHERE NOT (V IN UNNEST([5]))": [("a",), ("b",)],
    "SELECT A FROM P WHERE V BETWEEN 2 AND 9": [("b",)],
    "SELECT A FROM P WHERE V NOT BETWEEN 2 AND 9": [("a",)],
    "SELECT A FROM P WHERE A > 'a' AND A <= 'b'": [("b",)],
    "SELECT A FROM P WHERE 'b' < A": [("c",)],
    "SELECT A FROM P WHERE A = 'zz'": [],
    "SELECT A FROM P WHERE F = F": [("a",), ("c",)],
    "SELECT A FROM P WHERE F != F": [("b",)],
    "SELECT A FROM P WHERE F < 2": [("a",), ("c",)],
    "SELECT A FROM P WHERE B": [("a",)],
    "SELECT A FROM P WHERE B IS NOT TRUE": [("b",), ("c",)],
    "SELECT A FROM P WHERE T < '2027-01-01T00:00:00Z'": [("a",)],
    "SELECT A FROM P WHERE T = TIMESTAMP '2026-01-01 02:00:00+02'": [("a",)],
    "SELECT A FROM P WHERE STARTS_WITH(A, 'b') OR ENDS_WITH(A, 'c')": [("b",), ("c",)],
    "SELECT 'a.c' LIKE 'a.c', 'abc' LIKE 'a.c', 'a%c' LIKE r'a\\%c', 'a\\nc' LIKE 'a_c', 'ab' LIKE '%', NULL LIKE 'x'": [(1, 0, 1, 1, 1, None)],
    "SELECT COUNT(*), COUNT(V), SUM(V), AVG(V), MIN(A), MAX(V) FROM P": [(3, 2, 3, 1.5, "a", 2)],
    "SELECT COUNT(*), SUM(V), MIN(V) FROM P WHERE FALSE": [(0, None, None)],
    "SELECT V FROM P WHERE FALSE GROUP BY V": [],
    "SELECT MAX(F) FROM P WHERE A != 'b'": [(1.5,)],
    "SELECT MAX(F), COUNT(DISTINCT F) FROM P": [("NaN", 3)],
    "SELECT A, COUNT(*) AS k, SUM(W) FROM C GROUP BY A ORDER BY k DESC, 1": [("a", 2, 30), ("b", 1, 30)],
    "SELECT SUM(W) + 1 FROM C GROUP BY A HAVING SUM(W) > 20 AND COUNT(*) > 1": [(31,)],
    "SELECT A x, COUNT(*) k FROM C GROUP BY x HAVING k = 1": [("b", 1)],
    "SELECT N + 1 FROM C GROUP BY N + 1 ORDER BY N + 1": [(2,), (3,)],
    "SELECT COUNT(*) FROM C HAVING COUNT(*) > 100": [],
    "SELECT DISTINCT A FROM C": [("a",), ("b",)],
    "SELECT P.A, N FROM P JOIN C ON P.A = C.A": [("a", 1), ("a", 2), ("b", 1)],
    "SELECT p.A, c.N FROM P p LEFT JOIN C c ON p.A = c.A AND c.W > 10 ORDER BY 1, 2": [("a", 2), ("b", 1), ("c", None)],
    "SELECT p.A, COUNT(c.N) FROM P p LEFT OUTER JOIN C c ON c.A = p.A GROUP BY p.A": [("a", 2), ("b", 1), ("c", 0)],
    "SELECT x.A, y.A FROM P x JOIN P y ON x.V < y.V": [("a", "b")],
    "SELECT COUNT(*) FROM P CROSS JOIN C": [(9,)],
    "SELECT P.* FROM C JOIN P ON P.A = C.A WHERE C.N = 2": [("a", 1, 1.5, "2026-01-01T00:00:00", None, '["1","2"]', 1)],
    "SELECT A FROM P@{FORCE_INDEX=ByV} LIMIT 1 OFFSET 1": [("b",)],
    "SELECT A FROM P LIMIT 0": [],
    "SELECT V + 1, V - 1, V * 3, V / 2, -V FROM P WHERE A = 'b'": [(3, 1, 6, 1.0, -2)],
    "SELECT 1 + 2 * 3, (1 + 2) * 3, -9223372036854775808, 'a' || 'b'": [(7, 9, -(1 << 63), "ab")],
    "SELECT TRUE OR NULL, FALSE AND NULL, TRUE AND NULL, FALSE OR NULL": [(1, 0, None, None)],
    "SELECT IFNULL(V, 0), COALESCE(NULL, V, 7), IF(V = 1, 'x', 'y'), NULLIF(V, 2) FROM P": [(1, 1, "x", 1), (2, 2, "y", None), (0, 7, "y", None)],
    "SELECT CASE WHEN V = 1 THEN 'one' WHEN V IS NULL THEN 'none' ELSE 'more' END FROM P": [("one",), ("more",), ("none",)],
    "SELECT CASE V WHEN 1 THEN 1.5 END FROM P": [(1.5,), (None,), (None,)],
    "SELECT CAST(V AS STRING), CAST('7' AS INT64), CAST(NULL AS DATE), CAST(TRUE AS STRING) FROM P WHERE V = 1": [("1", 7, None, "true")],
    "SELECT TIMESTAMP_ADD(T, INTERVAL 1 DAY), TIMESTAMP_SUB(T, INTERVAL V MICROSECOND), TIMESTAMP_DIFF(T, TIMESTAMP '2025-12-31T23:00:01Z', MINUTE) FROM P WHERE A = 'a'": [("2026-01-02T00:00:00", "2025-12-31T23:59:59.999999", 59)],
    "SELECT CURRENT_TIMESTAMP() > TIMESTAMP '2026-01-01T11:59:59Z'": [(1,)],
    "SELECT G, ARRAY_LENGTH(G) FROM P": [('["1","2"]', 2), (None, None), ("[]", 0)],
    "SELECT UPPER(A), LENGTH(A), MOD(-7, 3), ABS(-2) FROM P WHERE V = 1": [("A", 1, -1, 2)],
    "SELECT JSON '{\"b\": 1, \"a\": 2}'": [('{"a":2,"b":1}',)],
    "SELECT table_name FROM information_schema.tables WHERE table_schema = '' ORDER BY 1": [("C",), ("P",)],
    "SELECT COLUMN_NAME, SPANNER_TYPE FROM INFORMATION_SCHEMA.COLUMNS WHERE TABLE_NAME = 'C' AND '' = TABLE_SCHEMA": [("A", "STRING(MAX)"), ("N", "INT64"), ("W", "INT64")],
    "SELECT index_name FROM information_schema.indexes WHERE table_schema = '' AND index_type = 'INDEX'": [("ByV",)],
    "SELECT change_stream_name, `ALL` FROM information_schema.change_streams": [("S", 0)],
    "-- a comment\nSELECT /* another */ 1 # and one\n;": [(1,)],
}  # fmt: skip


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(sql, text):
    assert sql.query(text) == ANSWERS[text]


def test_untyped_parameters_take_the_type_they_meet(sql):
    assert sql.query("SELECT A FROM P WHERE V = @v AND T < @t", params(v="1", t="2027-01-01T00:00:00Z")) == [("a",)]
    assert sql.query("SELECT A FROM P WHERE V IN UNNEST(@v)", params(v=["1", "2"])) == [("a",), ("b",)]
    assert sql.query("SELECT A FROM P LIMIT @n", params(n="2")) == [("a",), ("b",)]
    assert sql.query("SELECT @X", params(x=1.5)) == [(1.5,)]


INVALID = [
    "", "SELEC 1", "SELECT", "SELECT 1 FROM", "SELECT Zed FROM P", "SELECT * FROM Zed", "SELECT X.A FROM P", "SELECT *", "SELECT A FROM P WHERE V",
    "SELECT A FROM P WHERE A = 1", "SELECT 1 = '1'", "SELECT NULL = NULL", "SELECT NOT NULL", "SELECT V + A FROM P", "SELECT A FROM P JOIN C ON TRUE",
    "SELECT V FROM P GROUP BY A", "SELECT A, COUNT(*) FROM P", "SELECT A FROM P WHERE COUNT(*) > 1", "SELECT SUM(A) FROM P", "SELECT SUM(MAX(V)) FROM P",
    "SELECT 1 WHERE TRUE", "SELECT A FROM P LIMIT -1", "SELECT A FROM P LIMIT 1.5", "SELECT A FROM P ORDER BY 2", "SELECT A FROM P ORDER BY J",
    "SELECT DISTINCT A FROM P ORDER BY V", "SELECT J FROM P GROUP BY J", "SELECT A FROM P WHERE J = JSON '1'", "SELECT A FROM P; SELECT 1", "SELECT 'a", "SELECT 'a' 'b'",
    "SELECT 9223372036854775808", "SELECT @missing", "SELECT PENDING_COMMIT_TIMESTAMP()", "SELECT DATE '2026-02-30'", "SELECT V = 1 = 1 FROM P", "SELECT $1",
    "SELECT A FROM P p JOIN P p ON TRUE", "SELECT CURRENT_TIMESTAMP(1)", "SELECT STARTS_WITH(1, 'a')", "SELECT A AS FROM P", "UPDATE P SET V = 1", "DELETE FROM P", "INSERT INTO P (A) VALUES",
    "SELECT (((1)", "SELECT '\\q'", "SELECT '\\ud800'", "SELECT " + "(" * (MAX_SQL_DEPTH + 1) + "1" + ")" * (MAX_SQL_DEPTH + 1), "SELECT " + "NOT " * 5000 + "TRUE", "SELECT " + "-" * 1 + "(-" * 200 + "1" + ")" * 200,
    "SELECT A FROM P@{FORCE_INDEX=Nope}",
]  # fmt: skip


@pytest.mark.parametrize("text", INVALID, ids=lambda text: text[:40])
def test_not_sql_or_not_sense(sql, text):
    with pytest.raises(StoreError) as refused:
        sql.query(text)
    assert refused.value.code == "INVALID_ARGUMENT"


UNIMPLEMENTED = [
    "WITH x AS (SELECT 1) SELECT * FROM x", "(SELECT 1)", "SELECT 1 UNION ALL SELECT 2", "SELECT (SELECT 1)", "SELECT A FROM (SELECT A FROM P)", "SELECT A FROM P WHERE EXISTS (SELECT 1)",
    "SELECT A FROM P WHERE A IN (SELECT A FROM C)", "SELECT A FROM P, C", "SELECT A FROM P JOIN C USING (A)", "SELECT A FROM P FULL JOIN C ON TRUE", "SELECT A FROM P RIGHT JOIN C ON TRUE",
    "SELECT * FROM UNNEST([1, 2])", "SELECT * EXCEPT (V) FROM P", "SELECT AS STRUCT 1", "SELECT STRUCT(1)", "SELECT (1, 2)", "SELECT G[OFFSET(0)] FROM P", "SELECT ROW_NUMBER() OVER (ORDER BY A) FROM P",
    "SELECT COUNT(*) OVER () FROM P", "SELECT SAFE_CAST('a' AS INT64)", "SELECT CAST(1.5 AS STRING)", "SELECT EXTRACT(YEAR FROM T) FROM P", "SELECT FORMAT('%d', 1)", "SELECT SHA256('a')", "SELECT JSON_VALUE(J, '$.a') FROM P",
    "SELECT 1 & 2", "SELECT 1 << 2", "SELECT ~1", "SELECT A FROM P ORDER BY V NULLS LAST", "SELECT TIMESTAMP '2026-01-01'", "SELECT NUMERIC '1.5'", "SELECT A FROM P TABLESAMPLE RESERVOIR (1 ROWS)",
    "SELECT * FROM information_schema.tables", "SELECT * FROM information_schema.views WHERE table_schema = ''", "SELECT * FROM SPANNER_SYS.QUERY_STATS_TOP_HOUR", "SELECT A FROM P@{GROUPBY_SCAN_OPTIMIZATION=TRUE}", "@{USE_ADDITIONAL_PARALLELISM=TRUE} SELECT 1",
    "SELECT UPPER('é')", "SELECT A FROM P WHERE V IS DISTINCT FROM 1", "SELECT STRING_AGG(A) FROM P", "SELECT 'a' AS V, V FROM P ORDER BY V", "SELECT NET.HOST('x')", "SELECT P FROM P", "GRAPH g MATCH (n) RETURN n", "SELECT LEFT('abc', 1)",
    "SELECT b'a' LIKE b'a'", "SELECT [1] || [2]", "SELECT @@x", "SELECT INTERVAL 1 DAY", "SELECT A FROM s.P",
]  # fmt: skip


@pytest.mark.parametrize("text", UNIMPLEMENTED, ids=lambda text: text[:40])
def test_what_is_not_known_is_said_to_be(sql, text):
    with pytest.raises(StoreError) as refused:
        sql.query(text)
    assert refused.value.code == "UNIMPLEMENTED", refused.value.text
    assert "router store --help" in refused.value.text


@pytest.mark.parametrize("text", ["SELECT 9223372036854775807 + 1", "SELECT -(-9223372036854775808)", "SELECT 1 / 0", "SELECT 1e308 * 10", "SELECT MOD(1, 0)", "SELECT SUM(9223372036854775807) FROM P", "SELECT TIMESTAMP_ADD(TIMESTAMP '9999-12-31T00:00:00Z', INTERVAL 1 DAY)", "SELECT CAST('1_0' AS INT64)", "SELECT 'a' LIKE 'a\\\\'"])  # fmt: skip
def test_out_of_range(sql, text):
    with pytest.raises(StoreError) as refused:
        sql.query(text)
    assert refused.value.code == "OUT_OF_RANGE"


@given(st.text("SELECT FROMWHERE()'\"`@,.*=<>-/\\\n\0aP19_{}[]", max_size=60))
def test_any_text_is_parsed_or_refused(text):
    try:
        parse("SELECT " + text)
    except StoreError as error:
        if error.code not in {"INVALID_ARGUMENT", "UNIMPLEMENTED"}:
            raise


@given(st.lists(st.tuples(st.sampled_from(["=", "<", "<=", ">", ">=", "IN"]), st.sampled_from(["A", "N", "W"]), st.integers(0, 4)), min_size=1, max_size=4))
def test_key_ranges_never_lose_a_row(tests):
    """What a scan is narrowed to, by keys, holds every row of which the condition is true."""
    from router.config.embedded import keys
    from router.config.embedded.catalog import Catalog
    from router.config.embedded.ddl import parse as parse_ddl
    from router.config.embedded.schema import apply
    from router.config.embedded.sql.expressions import Compiler, Context, Scope
    from router.config.embedded.sql.sources import key_ranges
    from router.config.embedded.sql.typed import Params

    table = apply(Catalog(), parse_ddl("CREATE TABLE T (A INT64, N INT64, W INT64) PRIMARY KEY (A, N DESC)")).table("T")
    condition = " AND ".join(f"{column} IN ({number}, {number + 1})" if op == "IN" else f"{column} {op} {number}" for op, column, number in tests)
    scope = Scope()
    scope.add("T", [(column.name, column.type, None) for column in table.columns.values()])
    compiler = Compiler(scope, Context(Params({}, {}), ""))
    where = parse(f"SELECT 1 FROM T WHERE {condition}").where
    ranges = key_ranges(table, "T", where, compiler)
    test = compiler.condition(where, "WHERE")
    for a in [None, 0, 1, 2, 3, 4, 5]:
        for n in [None, 0, 1, 2, 3, 4, 5]:
            if test((a, n, 2)):
                assert keys.overlaps(ranges, keys.encode(table.key, (a, n)))


# -- DML


def run(sql, *statements):
    transaction = sql.transactions.begin()
    return transaction, [sql.dml(transaction, text) for text in statements]


def commit(sql, transaction):
    return sql.transactions.commit(transaction, lambda _workspace, _at: None, "")


def test_dml_is_seen_by_its_transaction_first(sql):
    transaction, results = run(
        sql,
        "INSERT INTO P (A, V) VALUES ('d', 4), ('e', 5)",
        "UPDATE P SET V = V + 1 WHERE V >= 4",
        "DELETE FROM P WHERE A = 'a'",
        "INSERT OR IGNORE INTO P (A, V) VALUES ('d', 9), ('f', 9)",
        "INSERT OR UPDATE INTO P (A, V) VALUES ('e', 8)",
        "INSERT INTO C (A, N) SELECT A, V FROM P WHERE V > 7",
    )
    assert [result.changed for result in results] == [2, 2, 1, 1, 1, 2]
    inside = [("b", 2), ("c", None), ("d", 5), ("e", 8), ("f", 9)]
    assert sql.query("SELECT A, V FROM P", transaction=transaction) == inside
    assert sql.query("SELECT COUNT(*) FROM C", transaction=transaction) == [(3,)]
    assert len(sql.query("SELECT A FROM P")) == 3
    commit(sql, transaction)
    assert sql.query("SELECT A, V FROM P") == inside
    assert sql.query("SELECT A, N FROM C") == [("b", 1), ("e", 8), ("f", 9)]


def test_returning(sql):
    _, (inserted, updated, deleted) = run(sql, "INSERT INTO P (A, V) VALUES ('d', 4) THEN RETURN V + 1 AS w, A", "UPDATE P SET V = 7 WHERE A = 'd' THEN RETURN *", "DELETE FROM P WHERE A = 'd' THEN RETURN V")
    assert ([name for name, _ in inserted.fields], inserted.rows) == (["w", "A"], [(5, "d")])
    assert updated.rows[0][:2] == ("d", 7)
    assert deleted.rows == [(7,)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("INSERT INTO P (A) VALUES ('a')", "ALREADY_EXISTS"),
        ("INSERT INTO P (A) VALUES ('x'), ('x')", "ALREADY_EXISTS"),
        ("INSERT INTO C (A, N) VALUES ('nope', 1)", "NOT_FOUND"),
        ("INSERT INTO P (A, A) VALUES ('x', 'y')", "INVALID_ARGUMENT"),
        ("INSERT INTO P (A, V) VALUES ('x')", "INVALID_ARGUMENT"),
        ("INSERT INTO P (A, V) VALUES ('x', 'y')", "INVALID_ARGUMENT"),
        ("INSERT INTO P (A, Zed) VALUES ('x', 'y')", "INVALID_ARGUMENT"),
        ("INSERT INTO Zed (A) VALUES ('x')", "INVALID_ARGUMENT"),
        ("UPDATE P SET A = 'x' WHERE TRUE", "INVALID_ARGUMENT"),
        ("UPDATE P SET V = 'x' WHERE FALSE", "INVALID_ARGUMENT"),
        ("UPDATE P SET V = 1, V = 2 WHERE TRUE", "INVALID_ARGUMENT"),
        ("UPDATE P SET T = PENDING_COMMIT_TIMESTAMP() WHERE A = 'a'", "FAILED_PRECONDITION"),
        ("UPDATE P SET V = V / 0 WHERE A = 'a'", "INVALID_ARGUMENT"),
        ("UPDATE P SET F = V / 0 WHERE A = 'a'", "OUT_OF_RANGE"),
        ("UPDATE P SET P.V = 1 FROM C WHERE TRUE", "UNIMPLEMENTED"),
        ("INSERT INTO P VALUES ('x')", "INVALID_ARGUMENT"),
    ],
)
def test_a_statement_that_fails_undoes_itself_alone(sql, text, code):
    transaction, _ = run(sql, "UPDATE P SET V = 100 WHERE A = 'a'")
    with pytest.raises(StoreError) as refused:
        sql.dml(transaction, text)
    assert refused.value.code == code
    assert sql.query("SELECT A, V FROM P", transaction=transaction) == [("a", 100), ("b", 2), ("c", None)]
    commit(sql, transaction)
    assert sql.query("SELECT V FROM P WHERE A = 'a'") == [(100,)]


def test_a_pending_commit_timestamp_cannot_be_read(make_bench):
    bench = make_bench(None)
    transaction = bench.transactions.begin()
    bench.dml(transaction, "INSERT INTO Endpoints (EndpointId, UpdatedAt) VALUES ('a', PENDING_COMMIT_TIMESTAMP())")
    assert bench.query("SELECT EndpointId FROM Endpoints", transaction=transaction) == [("a",)]
    with pytest.raises(StoreError, match="pending"):
        bench.query("SELECT UpdatedAt FROM Endpoints", transaction=transaction)
    at = commit(bench, transaction)
    from router.config.embedded.timestamps import text_of_us

    assert bench.query("SELECT UpdatedAt FROM Endpoints") == [(text_of_us(at),)]
