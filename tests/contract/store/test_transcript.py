"""One transcript of operations with the unmodified client library, run against the embedded store, against Google's emulator
where it is installed, and against Spanner where one is configured.

Each check has a name and a normalised answer. `transcript.json` has the emulator's answers; the embedded store must give the
same, but for `DIFFERENCES`, each with its reason. Record anew with ROUTER_RECORD_TRANSCRIPT=1.
"""

import datetime as dt
import json
import os
import uuid
from pathlib import Path

import pytest

RECORDED = Path(__file__).with_name("transcript.json")
pytestmark = [pytest.mark.timeout(120)]

# What differs, and why that is right or does no harm.
DIFFERENCES = {
    "change records: values of a row": "the emulator cuts timestamps to seconds, writes infinity as null and shows 9999-12-31 for a commit timestamp of the same transaction",
    "change records: transaction tag": "the emulator leaves it out",
    "change records: NEW_VALUES of DML": "the emulator adds columns that the statement did not write",
}

DDL = [
    "CREATE TABLE Parents (Id STRING(36) NOT NULL, V INT64, State STRING(8), U TIMESTAMP OPTIONS (allow_commit_timestamp=true)) PRIMARY KEY (Id)",
    "CREATE TABLE Children (Id STRING(36) NOT NULL, N INT64 NOT NULL, V INT64, W STRING(MAX)) PRIMARY KEY (Id, N DESC), INTERLEAVE IN PARENT Parents ON DELETE CASCADE",
    "CREATE TABLE Guarded (Id STRING(36) NOT NULL, N INT64) PRIMARY KEY (Id, N), INTERLEAVE IN PARENT Parents ON DELETE NO ACTION",
    "CREATE TABLE Kitchen (K INT64 NOT NULL, S STRING(MAX), B BOOL, F FLOAT64, Y BYTES(4), T TIMESTAMP, D DATE, J JSON, AI ARRAY<INT64>, S2 ARRAY<STRING(MAX)>, U TIMESTAMP OPTIONS (allow_commit_timestamp=true)) PRIMARY KEY (K)",
    "CREATE TABLE Uniq (K INT64, A INT64, B INT64) PRIMARY KEY (K)",
    "CREATE UNIQUE INDEX UniqA ON Uniq(A)",
    "CREATE NULL_FILTERED INDEX UniqB ON Uniq(B DESC)",
    "CREATE INDEX ChildrenByV ON Children(V, W) STORING (Id)".replace(" STORING (Id)", ""),
    "CREATE CHANGE STREAM NewRow FOR ALL OPTIONS (value_capture_type='NEW_ROW', retention_period='1d')",
    "CREATE CHANGE STREAM OldNew FOR Parents(V), Children OPTIONS (value_capture_type='OLD_AND_NEW_VALUES')",
    "CREATE CHANGE STREAM NewValues FOR Parents, Children(W) OPTIONS (value_capture_type='NEW_VALUES')",
]  # fmt: skip
FIELDS = ["ts", "sequence", "transaction", "last", "table", "columns", "mods", "kind", "capture", "records", "partitions", "tag", "system"]  # fmt: skip


class Target:
    """One store, and the answers it gave."""

    def __init__(self, address, database=None):
        from google.cloud import spanner

        self.spanner = spanner
        saved = os.environ.pop("SPANNER_EMULATOR_HOST", None)
        if address is not None:
            os.environ["SPANNER_EMULATOR_HOST"] = address
        try:
            project = database.split("/")[1] if database else "p"
            self.client = spanner.Client(project=project)
        finally:
            os.environ.pop("SPANNER_EMULATOR_HOST", None)
            if saved is not None:
                os.environ["SPANNER_EMULATOR_HOST"] = saved
        instance_id = database.split("/")[3] if database else "c" + uuid.uuid4().hex[:10]
        self.instance = self.client.instance(
            instance_id, configuration_name=f"projects/{project}/instanceConfigs/emulator-config", display_name="contract", node_count=1
        )  # fmt: skip
        if database is None:
            self.instance.create().result(30)
        self.db = self.instance.database("t" + uuid.uuid4().hex[:10], ddl_statements=DDL)
        self.db.create().result(120)
        self.answers = {}

    def check(self, name, work):
        """Run one operation; remember what came of it."""
        from google.api_core import exceptions

        assert name not in self.answers, name
        try:
            answer = ["OK", plain(work())]
        except exceptions.GoogleAPICallError as error:
            status = error.grpc_status_code
            answer = ["ERROR", status.name if status is not None else error.code]
        self.answers[name] = answer

    # -- shorthands

    def write(self, operation, table, columns, *rows):
        with self.db.batch() as batch:
            getattr(batch, operation)(table, columns, list(rows))
        return batch.committed

    def batch(self, *operations):
        with self.db.batch() as batch:
            for operation, *arguments in operations:
                getattr(batch, operation)(*arguments)
        return batch.committed

    def keys(self, *keys, everything=False, ranges=()):
        return self.spanner.KeySet(keys=list(keys), ranges=[self.spanner.KeyRange(**r) for r in ranges], all_=everything)

    def delete(self, table, *keys, **more):
        return self.batch(("delete", table, self.keys(*keys, **more)))

    def read(self, table, columns, key_set=None, bound=None, **more):
        with self.db.snapshot(**(bound or {})) as snapshot:
            return [list(row) for row in snapshot.read(table, columns, key_set or self.keys(everything=True), **more)]

    def sql(self, text, params=None, types=None, **bound):
        with self.db.snapshot(**bound) as snapshot:
            result = snapshot.execute_sql(text, params=params, param_types=types)
            rows = [list(row) for row in result]
            return [[field.name, int(field.type_.code)] for field in result.fields], rows

    def dml(self, *statements):
        return self.db.run_in_transaction(lambda t: [t.execute_update(s) for s in statements])

    def changes(self, stream, start, token, end, heartbeat=1000, named=True):
        from google.cloud.spanner_v1 import param_types

        arguments = "start_timestamp => @s, end_timestamp => @e, partition_token => @t, heartbeat_milliseconds => @h" if named else "@s, @e, @t, @h"
        types = {"s": param_types.TIMESTAMP, "e": param_types.TIMESTAMP, "t": param_types.STRING, "h": param_types.INT64}
        with self.db.snapshot() as snapshot:
            for row in snapshot.execute_sql(f"SELECT ChangeRecord FROM READ_{stream}({arguments})", params={"s": start, "e": end, "t": token, "h": heartbeat}, param_types=types):
                yield from row[0]

    def replay(self, stream, start, end):
        """All data change records of [start, end], in order, whatever the partitions were."""
        todo = [child for record in self.changes(stream, start, None, end) for children in record[2] for child in children[2]]
        records, seen, beats = [], set(), 0
        while todo:
            token, parents = todo.pop()
            if token in seen:
                continue
            seen.add(token)
            for data, heartbeats, children in self.changes(stream, start, token, end):
                records += [dict(zip(FIELDS, record, strict=True)) for record in data]
                beats += len(heartbeats)
                todo += [child for record in children for child in record[2]]
        records.sort(key=lambda r: (r["ts"], r["sequence"]))
        return records, beats


def plain(value):
    """What JSON can hold, with nothing in it that differs from run to run."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat()
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in dict(value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


P = ["Id", "V", "State"]
C = ["Id", "N", "V", "W"]
SQL = {
    "literals": "SELECT 1 AS x, 'a', 1.5, TRUE, NULL, b'x', DATE '2024-01-01', TIMESTAMP '2024-01-01 00:00:00.120+00'",
    "star": "SELECT * FROM Parents ORDER BY Id LIMIT 2".replace("*", "Id, V, State"),
    "names": "SELECT id, V AS v2, parents.State FROM Parents ORDER BY 1 LIMIT 1",
    "comparison": "SELECT Id FROM Parents WHERE V >= 2 AND V != 4 ORDER BY Id",
    "three-valued NOT": "SELECT Id FROM Parents WHERE NOT (V = 1) ORDER BY Id",
    "IN with NULL": "SELECT Id FROM Parents WHERE V IN (1, NULL) ORDER BY Id",
    "NOT IN with NULL": "SELECT Id FROM Parents WHERE V NOT IN (1, NULL) ORDER BY Id",
    "IN UNNEST": "SELECT Id FROM Parents WHERE Id IN UNNEST(['p1', 'p3', 'zz']) ORDER BY Id",
    "BETWEEN": "SELECT Id FROM Parents WHERE V BETWEEN 2 AND 3 ORDER BY Id",
    "IS NULL": "SELECT Id FROM Parents WHERE V IS NULL",
    "NULLs first": "SELECT V FROM Parents ORDER BY V, Id LIMIT 3",
    "NULLs last descending": "SELECT V FROM Parents ORDER BY V DESC, Id",
    "LIMIT OFFSET": "SELECT Id FROM Parents ORDER BY Id LIMIT 2 OFFSET 1",
    "aggregates": "SELECT COUNT(*), COUNT(V), SUM(V), AVG(V), MIN(Id), MAX(V) FROM Parents",
    "aggregates of nothing": "SELECT COUNT(*), SUM(V), MAX(Id) FROM Parents WHERE FALSE",
    "group": "SELECT State, COUNT(*) AS n, SUM(V) FROM Parents GROUP BY State ORDER BY n DESC, State",
    "having": "SELECT Id FROM Children GROUP BY Id HAVING COUNT(*) > 1",
    "distinct": "SELECT DISTINCT State FROM Parents ORDER BY State",
    "count distinct": "SELECT COUNT(DISTINCT State) FROM Parents",
    "join": "SELECT p.Id, c.N FROM Parents AS p JOIN Children AS c ON p.Id = c.Id ORDER BY 1, 2",
    "left join": "SELECT p.Id, c.N FROM Parents p LEFT JOIN Children c ON p.Id = c.Id AND c.V > 10 ORDER BY 1, 2",
    "left join group": "SELECT p.Id, COUNT(c.N) AS n FROM Parents p LEFT JOIN Children c ON p.Id = c.Id GROUP BY p.Id ORDER BY 1",
    "self join": "SELECT a.Id, b.Id FROM Parents a JOIN Parents b ON a.V < b.V WHERE a.V = 1 ORDER BY 2",
    "arithmetic": "SELECT 1 + 2 * 3, 7 - 10, 5 / 2, -V FROM Parents WHERE Id = 'p1'",
    "logic": "SELECT TRUE OR NULL, FALSE AND NULL, TRUE AND NULL",
    "mixed numbers": "SELECT 1 = 1.0, 1 < 2.5, 'a' < 'b'",
    "coalesce": "SELECT IFNULL(V, 0), COALESCE(NULL, V, 3), IF(V = 1, 'x', 'y'), NULLIF(V, 2) FROM Parents ORDER BY Id",
    "case": "SELECT CASE WHEN V = 1 THEN 'one' WHEN V IS NULL THEN 'none' ELSE 'more' END, CASE V WHEN 1 THEN 1 END FROM Parents ORDER BY Id",
    "starts with": "SELECT STARTS_WITH(Id, 'p'), ENDS_WITH(Id, '1') FROM Parents ORDER BY Id LIMIT 1",
    "like": r"SELECT 'abc' LIKE 'a%', 'abc' LIKE 'a_c', 'a%c' LIKE 'a\\%c', 'abc' LIKE 'a\\%c'",
    "concat": "SELECT 'a' || 'b', CONCAT('x', 'y', 'z'), LENGTH('é'), UPPER('a'), LOWER('A')",
    "timestamps": "SELECT TIMESTAMP_ADD(TIMESTAMP '2024-01-31T00:00:00Z', INTERVAL 1 DAY), TIMESTAMP_SUB(TIMESTAMP '2024-01-31T00:00:00Z', INTERVAL 1 MICROSECOND), TIMESTAMP_DIFF(TIMESTAMP '2024-01-31T00:00:00Z', TIMESTAMP '2024-01-30T00:00:01Z', HOUR)",
    "now": "SELECT CURRENT_TIMESTAMP() > TIMESTAMP '2020-01-01T00:00:00Z'",
    "casts": "SELECT CAST(1 AS STRING), CAST('7' AS INT64), CAST(TRUE AS STRING), CAST(3 AS FLOAT64)",
    "arrays": "SELECT [1, 2], ARRAY_LENGTH([1, 2, 3]), 1 IN UNNEST([]), MOD(-7, 3), ABS(-3)",
    "quoted names": "SELECT `Id` FROM `Parents` WHERE `Id` = 'p1'",
    "comments": "SELECT /* x */ 1 -- y\n",
    "JSON literal": 'SELECT JSON \'{"b": 1, "a": [1, 2.50]}\'',
    "NaN sorts first": "SELECT K, F FROM Kitchen ORDER BY F, K",
    "NaN equals nothing": "SELECT K FROM Kitchen WHERE F = F ORDER BY K",
    "tables": "SELECT table_name, parent_table_name, on_delete_action FROM information_schema.tables WHERE table_schema = '' ORDER BY 1",
    "columns": "SELECT * FROM information_schema.columns WHERE table_schema = '' AND table_name = 'Children' ORDER BY ordinal_position",
    "indexes": "SELECT table_name, index_name, is_unique, is_null_filtered, index_state FROM information_schema.indexes WHERE table_schema = '' ORDER BY 1, 2",
    "index columns": "SELECT index_name, column_name, ordinal_position, column_ordering FROM information_schema.index_columns WHERE table_schema = '' AND index_type = 'INDEX' ORDER BY 1, 3",
    "change streams": "SELECT * FROM information_schema.change_streams ORDER BY 3",
    # errors
    "syntax": "SELEC 1", "nothing": "", "unknown column": "SELECT Nope FROM Parents", "unknown table": "SELECT * FROM Nope", "unknown alias": "SELECT x.Id FROM Parents",
    "types of =": "SELECT Id FROM Parents WHERE Id = 1", "types of +": "SELECT V + Id FROM Parents", "WHERE is no BOOL": "SELECT 1 FROM Parents WHERE V", "ambiguous": "SELECT Id FROM Parents JOIN Children ON TRUE",
    "not grouped": "SELECT V FROM Parents GROUP BY Id", "overflow": "SELECT 9223372036854775807 + 1", "division by zero": "SELECT 1 / 0", "WHERE without FROM": "SELECT 1 WHERE FALSE", "NULL = NULL": "SELECT NULL = NULL",
    "missing parameter": "SELECT @nope", "two statements": "SELECT 1; SELECT 2", "DML in a read": "DELETE FROM Parents WHERE TRUE", "LIMIT -1": "SELECT 1 FROM Parents LIMIT -1", "aggregate in WHERE": "SELECT Id FROM Parents WHERE COUNT(*) > 1",
    "SUM of text": "SELECT SUM(Id) FROM Parents", "bad literal": "SELECT DATE '2024-02-30'", "group by JSON": "SELECT J FROM Kitchen GROUP BY J", "pending outside DML": "SELECT PENDING_COMMIT_TIMESTAMP()",
}  # fmt: skip
DML = {
    "insert": "INSERT INTO Parents (Id, V) VALUES ('d1', 1), ('d2', 2)",
    "insert existing": "INSERT INTO Parents (Id) VALUES ('d1')",
    "insert twice": "INSERT INTO Parents (Id) VALUES ('dx'), ('dx')",
    "insert or ignore": "INSERT OR IGNORE INTO Parents (Id, V) VALUES ('d1', 9), ('d3', 3)",
    "insert or update": "INSERT OR UPDATE INTO Parents (Id, V) VALUES ('d1', 7), ('d4', 4)",
    "insert from select": "INSERT INTO Children (Id, N) SELECT Id, V FROM Parents WHERE Id = 'd1'",
    "insert without parent": "INSERT INTO Children (Id, N) VALUES ('none', 1)",
    "insert NULL": "INSERT INTO Children (Id, N) VALUES ('d1', NULL)",
    "insert same column": "INSERT INTO Parents (Id, Id) VALUES ('a', 'b')",
    "insert too few": "INSERT INTO Parents (Id, V) VALUES ('a')",
    "insert type": "INSERT INTO Parents (Id, V) VALUES ('a', 'b')",
    "insert too long": "INSERT INTO Parents (Id, State) VALUES ('a', '123456789')",
    "update": "UPDATE Parents SET V = V + 1 WHERE STARTS_WITH(Id, 'd')",
    "update of an alias": "UPDATE Parents p SET p.State = 'x' WHERE p.Id = 'd1'",
    "update key": "UPDATE Parents SET Id = 'x' WHERE Id = 'd1'",
    "update without WHERE": "UPDATE Parents SET V = 1",
    "update type": "UPDATE Parents SET V = 'a' WHERE TRUE",
    "update unknown": "UPDATE Parents SET Nope = 1 WHERE TRUE",
    "update timestamp": "UPDATE Parents SET U = PENDING_COMMIT_TIMESTAMP() WHERE Id = 'd1'",
    "update timestamp not allowed": "UPDATE Kitchen SET T = PENDING_COMMIT_TIMESTAMP() WHERE TRUE",
    "unknown table": "UPDATE Nope SET V = 1 WHERE TRUE",
    "delete without WHERE": "DELETE FROM Parents",
    "delete": "DELETE FROM Parents WHERE Id = 'd4'",
    "delete guarded": "DELETE FROM Parents WHERE Id = 'g'",
    "short forms": "INSERT Parents (Id) VALUES ('d9')",
    "short delete": "DELETE Parents WHERE Id = 'd9'",
}  # fmt: skip
SCHEMA_CHANGES = {
    "create existing table": "CREATE TABLE Parents (A INT64) PRIMARY KEY (A)",
    "create if not exists": "CREATE TABLE IF NOT EXISTS Parents (A INT64) PRIMARY KEY (A)",
    "syntax": "CREATE TABLE Q (A INT64",
    "key without column": "CREATE TABLE Q (A INT64) PRIMARY KEY (B)",
    "duplicate column": "CREATE TABLE Q (A INT64, A INT64) PRIMARY KEY (A)",
    "parent key type": "CREATE TABLE Q (Id INT64) PRIMARY KEY (Id), INTERLEAVE IN PARENT Parents",
    "no parent": "CREATE TABLE Q (Id INT64) PRIMARY KEY (Id), INTERLEAVE IN PARENT Nope",
    "JSON key": "CREATE TABLE Q (A JSON) PRIMARY KEY (A)",
    "drop with children": "DROP TABLE Parents",
    "drop with index": "DROP TABLE Uniq",
    "drop unknown table": "DROP TABLE Nope",
    "drop unknown index": "DROP INDEX Nope",
    "drop unknown stream": "DROP CHANGE STREAM Nope",
    "index on unknown table": "CREATE INDEX Q ON Nope(V)",
    "index on unknown column": "CREATE INDEX Q ON Parents(Nope)",
    "existing index": "CREATE INDEX UniqA ON Uniq(A)",
    "drop key column": "ALTER TABLE Parents DROP COLUMN Id",
    "drop indexed column": "ALTER TABLE Children DROP COLUMN W",
    "drop watched column": "ALTER TABLE Parents DROP COLUMN V",
    "add existing column": "ALTER TABLE Parents ADD COLUMN V INT64",
    "add NOT NULL column": "ALTER TABLE Parents ADD COLUMN Q INT64 NOT NULL",
    "existing stream": "CREATE CHANGE STREAM NewRow FOR ALL",
    "stream of unknown table": "CREATE CHANGE STREAM Q FOR Nope",
    "stream of key": "CREATE CHANGE STREAM Q FOR Uniq(K)",
    "fourth stream": "CREATE CHANGE STREAM Q FOR Children",
    "add column": "ALTER TABLE Kitchen ADD COLUMN Q STRING(5)",
    "drop column": "ALTER TABLE Kitchen DROP COLUMN Q",
}  # fmt: skip


def run(t):
    """Everything, in order."""
    from google.cloud.spanner_v1 import JsonObject, param_types

    now = lambda: dt.datetime.now(dt.UTC)  # noqa: E731
    stamp = t.spanner.COMMIT_TIMESTAMP

    # mutations
    first = t.write("insert", "Parents", [*P, "U"], ["p1", 1, "up", stamp], ["p2", 2, "up", stamp], ["p3", None, "down", stamp], ["p4", 4, None, stamp])
    second = t.write("insert", "Children", C, ["p1", 1, 10, "a"], ["p1", 2, 20, "b"], ["p2", 1, 30, None], ["p2", 7, None, "z"])
    for name, arguments in {
        "insert existing": ("insert", "Parents", P, ["p1", 9, "up"]), "update missing": ("update", "Parents", P, ["zz", 9, "up"]), "insert without parent": ("insert", "Children", C, ["zz", 1, 1, ""]),
        "NULL in NOT NULL": ("insert", "Children", C, ["p1", None, 1, ""]), "no key": ("insert", "Children", ["Id", "V"], ["p1", 1]), "unknown table": ("insert", "Nope", ["A"], ["a"]),
        "unknown column": ("insert", "Parents", ["Id", "Nope"], ["a", 1]), "same column twice": ("insert", "Parents", ["Id", "V", "V"], ["a", 1, 1]), "too few values": ("insert", "Parents", ["Id", "V"], ["a"]),
        "too long": ("insert", "Parents", P, ["a", 1, "123456789"]), "too many bytes": ("insert", "Kitchen", ["K", "Y"], [90, b"MTIzNDU="]), "text for INT64": ("insert", "Parents", ["Id", "V"], ["a", "x"]), "float for INT64": ("insert", "Parents", ["Id", "V"], ["a", 1.5]),
        "bad JSON": ("insert", "Kitchen", ["K", "J"], [90, "{"]), "bad date": ("insert", "Kitchen", ["K", "D"], [90, "2024-02-30"]), "bad timestamp": ("insert", "Kitchen", ["K", "T"], [90, "soon"]), "bad base64": ("insert", "Kitchen", ["K", "Y"], [90, "*"]),
        "commit timestamp not allowed": ("insert", "Kitchen", ["K", "T"], [90, stamp]), "commit timestamp ahead": ("insert", "Kitchen", ["K", "U"], [90, now() + dt.timedelta(days=1)]),
    }.items():  # fmt: skip
        t.check(f"mutation: {name}", lambda arguments=arguments: t.write(*arguments) and None)
    third = t.write("update", "Children", ["Id", "N", "W"], ["p1", 1, "changed"])
    t.check("mutation: insert_or_update keeps what it does not name", lambda: (t.write("insert_or_update", "Parents", ["Id", "V"], ["p2", 22]), t.read("Parents", P, t.keys(["p2"])))[1])
    t.check("mutation: replace clears what it does not name", lambda: (t.write("replace", "Parents", ["Id", "V"], ["p4", 44]), t.read("Parents", P, t.keys(["p4"])))[1])
    t.check("mutation: nothing at all", lambda: t.batch() and None)
    t.write("insert", "Parents", ["Id"], ["g"])
    t.write("insert", "Guarded", ["Id", "N"], ["g", 1])
    t.check("mutation: delete guarded parent", lambda: t.delete("Parents", ["g"]) and None)
    t.check("mutation: delete child and parent", lambda: t.batch(("delete", "Guarded", t.keys(["g", 1])), ("delete", "Parents", t.keys(["g"]))) and None)
    t.write("insert", "Parents", ["Id"], ["g"])
    t.write("insert", "Guarded", ["Id", "N"], ["g", 1])
    t.check("mutation: delete what is not there", lambda: t.delete("Parents", ["nope"]) and None)
    t.check("mutation: delete with half a key", lambda: t.delete("Children", ["p1"]) and None)
    t.check("mutation: delete of unknown table", lambda: t.delete("Nope", ["p1"]) and None)
    t.write("insert", "Uniq", ["K", "A", "B"], [1, 10, 1], [2, 20, None], [3, None, 3])
    t.check("unique: taken", lambda: t.write("insert", "Uniq", ["K", "A"], [4, 10]) and None)
    t.check("unique: within a commit", lambda: t.write("insert", "Uniq", ["K", "A"], [4, 40], [5, 40]) and None)
    t.check("unique: NULL is a value", lambda: t.write("insert", "Uniq", ["K", "A"], [4, None]) and None)
    t.check("unique: handed over", lambda: t.batch(("delete", "Uniq", t.keys([1])), ("insert", "Uniq", ["K", "A"], [[4, 10]])) and None)
    with t.db.batch() as stats:
        stats.insert_or_update("Parents", ["Id", "V"], [["p1", 1]])
    t.check("mutation: commit stats", lambda: commit_stats(t))

    # types
    moment = dt.datetime(2024, 1, 2, 3, 4, 5, 678900, dt.UTC)
    kitchen = ["K", "S", "B", "F", "Y", "T", "D", "J", "AI", "S2", "U"]
    cooked = t.write("insert", "Kitchen", kitchen, [1, "é\0x", True, 1.5, b"AP8B", moment, dt.date(2024, 2, 29), JsonObject({"b": 1, "a": [1.5, None, "é"]}), [1, -2], ["p", ""], stamp], [2] + [None] * 10, [3, "", False, float("inf"), b"", None, None, JsonObject([1, "x"]), [], [], None], [4, None, None, float("nan"), None, dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.date(1, 1, 1), JsonObject({}), [3], ["q"], None])  # fmt: skip
    t.check("types: by read", lambda: t.read("Kitchen", kitchen[:-1]))
    t.check("types: by SQL", lambda: t.sql("SELECT K, S, B, F, Y, T, D, J, AI, S2 FROM Kitchen ORDER BY K"))
    t.check("types: commit timestamp", lambda: t.read("Kitchen", ["U"], t.keys([1]))[0][0] == cooked)

    # reads
    def half_open(start, end):
        return t.keys(ranges=[{"start_closed": start, "end_open": end}])

    for name, key_set in {
        "all": None, "point": t.keys(["p1", 2]), "points": t.keys(["p2", 1], ["p1", 1], ["zz", 1], ["p1", 1]), "half a key": t.keys(["p1"]), "nothing": t.keys(), "too long a key": t.keys(["p1", 1, 1]),
        "half open": half_open(["p1", 2], ["p2", 1]), "prefix": t.keys(ranges=[{"start_closed": ["p1"], "end_closed": ["p1"]}]), "open prefix": t.keys(ranges=[{"start_open": ["p1"], "end_closed": ["p2"]}]), "descending part": t.keys(ranges=[{"start_closed": ["p2", 7], "end_closed": ["p2", 2]}]),
        "empty range": half_open(["p2"], ["p1"]), "unbounded": t.keys(ranges=[{"start_closed": [], "end_open": ["p2"]}]), "overlapping": t.keys(["p1", 1], ranges=[{"start_closed": ["p1"], "end_closed": ["p1"]}]), "bad key": t.keys([1, "x"]),
    }.items():  # fmt: skip
        t.check(f"read: {name}", lambda key_set=key_set: t.read("Children", ["Id", "N", "W"], key_set))
    t.check("read: limit", lambda: t.read("Children", ["Id", "N"], limit=2))
    t.check("read: columns in another order", lambda: t.read("Children", ["W", "Id"], t.keys(["p1", 1])))
    t.check("read: no columns", lambda: t.read("Children", []))
    t.check("read: unknown column", lambda: t.read("Children", ["Nope"]))
    t.check("read: unknown table", lambda: t.read("Nope", ["A"]))
    t.check("read: index", lambda: t.read("Children", ["Id", "N", "V", "W"], index="ChildrenByV"))
    t.check("read: index by key", lambda: t.read("Children", ["Id", "N"], t.keys([20, "b"]), index="ChildrenByV"))
    t.check("read: index by prefix", lambda: t.read("Children", ["Id", "N"], t.keys(ranges=[{"start_closed": [10], "end_closed": [30]}]), index="ChildrenByV"))
    t.check("read: index with half a key", lambda: t.read("Children", ["Id", "N"], t.keys([20]), index="ChildrenByV"))
    t.check("read: null filtered descending index", lambda: t.read("Uniq", ["K", "B"], index="UniqB"))
    t.check("read: unknown index", lambda: t.read("Children", ["Id"], index="Nope"))
    t.check("read: index of another table", lambda: t.read("Children", ["Id"], index="UniqA"))

    # timestamps
    t.check("bounds: at the first commit", lambda: (len(t.read("Parents", ["Id"], bound={"read_timestamp": first})), len(t.read("Children", ["Id"], bound={"read_timestamp": first}))))
    t.check("bounds: before an update", lambda: t.read("Children", ["W"], t.keys(["p1", 1]), bound={"read_timestamp": second}))
    t.check("bounds: at an update", lambda: t.read("Children", ["W"], t.keys(["p1", 1]), bound={"read_timestamp": third}))
    t.check("bounds: SQL", lambda: t.sql("SELECT COUNT(*) FROM Children", read_timestamp=first))
    t.check("bounds: before it all", lambda: t.read("Parents", ["Id"], bound={"read_timestamp": first - dt.timedelta(seconds=20)}))
    t.check("bounds: too old", lambda: t.read("Parents", ["Id"], bound={"read_timestamp": first - dt.timedelta(hours=2)}))
    t.check("bounds: too stale", lambda: t.read("Parents", ["Id"], bound={"exact_staleness": dt.timedelta(hours=2)}))
    t.check("bounds: too far ahead", lambda: t.read("Parents", ["Id"], bound={"read_timestamp": first + dt.timedelta(hours=3)}))
    t.check("bounds: a little ahead waits", lambda: len(t.read("Parents", ["Id"], t.keys(["p1"]), bound={"read_timestamp": now() + dt.timedelta(milliseconds=300)})))
    t.check("bounds: min_read_timestamp", lambda: len(t.read("Parents", ["Id"], t.keys(["p1"]), bound={"min_read_timestamp": first})))
    t.check("bounds: max_staleness", lambda: len(t.read("Parents", ["Id"], t.keys(["p1"]), bound={"max_staleness": dt.timedelta(seconds=0)})))
    t.check("bounds: commits increase", lambda: first < second < third < cooked)

    def repeatable():
        with t.db.snapshot(multi_use=True) as snapshot:
            before = list(snapshot.execute_sql("SELECT COUNT(*) FROM Parents"))
            t.write("insert", "Parents", ["Id"], ["later"])
            after = list(snapshot.execute_sql("SELECT COUNT(*) FROM Parents")) + list(snapshot.read("Parents", ["Id"], t.keys(["later"])))
        return before == after, len(t.read("Parents", ["Id"], t.keys(["later"])))

    t.check("bounds: a multi-use snapshot stays", repeatable)
    t.delete("Parents", ["later"])

    # SQL
    for name, text in SQL.items():
        t.check(f"SQL: {name}", lambda text=text: t.sql(text))
    t.check("SQL: typed parameters", lambda: t.sql("SELECT Id FROM Parents WHERE V = @v AND State IN UNNEST(@s)", {"v": 1, "s": ["up", "x"]}, {"v": param_types.INT64, "s": param_types.Array(param_types.STRING)}))
    t.check("SQL: untyped parameters", lambda: t.sql("SELECT Id FROM Parents WHERE Id = @i AND V = @v", {"i": "p1", "v": 1}))
    t.check("SQL: a NULL parameter", lambda: t.sql("SELECT Id FROM Parents WHERE V = @v", {"v": None}, {"v": param_types.INT64}))
    t.check("SQL: a parameter that is not of its type", lambda: t.sql("SELECT @v", {"v": "q"}, {"v": param_types.INT64}))
    t.check("SQL: timestamps and bytes as parameters", lambda: t.sql("SELECT K FROM Kitchen WHERE T = @t AND Y = @y AND D = @d", {"t": moment, "y": b"AP8B", "d": dt.date(2024, 2, 29)}, {"t": param_types.TIMESTAMP, "y": param_types.BYTES, "d": param_types.DATE}))

    # DML and transactions
    for name, text in DML.items():
        t.check(f"DML: {name}", lambda text=text: t.dml(text))
    t.check("DML: what is left of it", lambda: t.sql("SELECT Id, V, State, U IS NULL FROM Parents WHERE STARTS_WITH(Id, 'd') ORDER BY Id"))

    def returning(tx):
        result = tx.execute_sql("UPDATE Parents SET V = V + 1 WHERE Id = 'd1' THEN RETURN V, Id")
        return [list(row) for row in result], result.stats.row_count_exact

    t.check("DML: THEN RETURN", lambda: t.db.run_in_transaction(returning))
    t.check("DML: in a batch", lambda: t.db.run_in_transaction(lambda tx: batch_dml(tx, ["UPDATE Parents SET V = 5 WHERE Id = 'd1'", "DELETE FROM Parents WHERE Id = 'd2'"])))
    t.check("DML: a batch that fails", lambda: t.db.run_in_transaction(lambda tx: batch_dml(tx, ["UPDATE Parents SET V = 6 WHERE Id = 'd1'", "INSERT INTO Parents (Id) VALUES ('d1')", "UPDATE Parents SET V = 7 WHERE Id = 'd1'"])))
    t.check("DML: after the batch", lambda: t.read("Parents", ["V"], t.keys(["d1"])))
    t.check("DML: partitioned", lambda: t.db.execute_partitioned_dml("UPDATE Parents SET State = 'pdml' WHERE Id = 'd1'"))

    def own_writes(tx):
        tx.execute_update("INSERT INTO Parents (Id, V) VALUES ('t1', 1)")
        tx.insert("Parents", ["Id", "V"], [["t2", 2]])
        return [list(r) for r in tx.read("Parents", ["Id"], t.keys(["t1"], ["t2"]))], [list(r) for r in tx.execute_sql("SELECT Id FROM Parents WHERE STARTS_WITH(Id, 't')")]

    t.check("transaction: reads its DML, not its mutations", lambda: t.db.run_in_transaction(own_writes))
    t.check("transaction: both were committed", lambda: t.read("Parents", ["Id"], t.keys(["t1"], ["t2"])))

    def rolled_back():
        def work(tx):
            tx.execute_update("DELETE FROM Parents WHERE TRUE AND Id = 't1'")
            raise ZeroDivisionError

        try:
            t.db.run_in_transaction(work)
        except ZeroDivisionError:
            return t.read("Parents", ["Id"], t.keys(["t1"]))

    t.check("transaction: rolled back", rolled_back)

    def pending(tx, column):
        tx.execute_update("UPDATE Parents SET U = PENDING_COMMIT_TIMESTAMP() WHERE Id = 't1'")
        return [list(r) for r in tx.execute_sql(f"SELECT {column} FROM Parents WHERE Id = 't1'")]

    t.check("transaction: pending timestamp", lambda: t.db.run_in_transaction(pending, "U"))
    t.check("transaction: beside a pending timestamp", lambda: t.db.run_in_transaction(pending, "Id"))

    def after_error(tx):
        from google.api_core import exceptions

        tx.execute_update("UPDATE Parents SET V = 99 WHERE Id = 't1'")  # the library hangs if the statement that begins fails
        try:
            tx.execute_update("INSERT INTO Parents (Id) VALUES ('p1')")
        except exceptions.AlreadyExists:
            return tx.execute_update("UPDATE Parents SET V = 100 WHERE Id = 't1'")

    t.check("transaction: goes on after a failed statement", lambda: (t.db.run_in_transaction(after_error), t.read("Parents", ["V"], t.keys(["t1"]))))
    t.check("transaction: increments", lambda: [t.db.run_in_transaction(increment) for _ in range(3)][-1])

    # the schema
    for name, text in SCHEMA_CHANGES.items():
        t.check(f"schema: {name}", lambda text=text: t.db.update_ddl([text]).result(60) and None)
    t.check("admin: instance again", lambda: t.instance.create().result(5) and None)
    t.check("admin: database again", lambda: t.instance.database(t.db.database_id).create().result(5) and None)
    t.check("admin: unknown database", lambda: t.instance.database("nope-x").reload())
    t.check("admin: bad database id", lambda: t.instance.database("Bad!").create().result(5) and None)

    # change streams
    began = t.write("insert", "Parents", P, ["s1", 1, "a"], ["s2", 2, "b"])
    t.write("insert", "Children", C, ["s1", 1, 1, "x"], ["s1", 2, 2, "y"])
    t.write("update", "Parents", ["Id", "V"], ["s1", 10])
    t.write("update", "Parents", ["Id", "State"], ["s1", "c"])
    t.batch(("update", "Parents", ["Id", "V"], [["s1", 11]]), ("update", "Parents", ["Id", "V"], [["s1", 12]]))
    t.batch(("insert", "Parents", ["Id"], [["s3"]]), ("delete", "Parents", t.keys(["s3"])))
    t.batch(("delete", "Parents", t.keys(["s2"])), ("insert", "Parents", ["Id", "V"], [["s2", 20]]))
    t.write("replace", "Parents", ["Id", "V"], ["s2", 21])
    t.write("update", "Parents", ["Id", "V"], ["s2", 21])
    t.db.run_in_transaction(lambda tx: tx.update("Parents", ["Id", "V"], [["s2", 30]]), transaction_tag="tagged")
    ended = t.delete("Parents", ["s1"])
    for stream in ("NewRow", "OldNew", "NewValues"):
        t.check(f"change records: {stream}", lambda stream=stream: shown(t.replay(stream, began, ended)))
    t.check("change records: transaction tag", lambda: {record["tag"] for record in t.replay("NewRow", began, ended)[0]} == {"", "tagged"})
    dml = [t.write("update", "Parents", ["Id", "V"], ["s2", 31]), t.dml("UPDATE Parents SET V = 32 WHERE Id = 's2'"), t.write("update", "Parents", ["Id", "V"], ["s2", 33])]
    t.check("change records: NEW_VALUES of DML", lambda: [mod for record in t.replay("NewValues", dml[0], dml[2])[0] for mod in record["mods"]])
    dish = t.write("insert", "Kitchen", kitchen, [50, "é", True, float("inf"), b"AP8B", moment, dt.date(2024, 2, 29), JsonObject({"b": 1, "a": [1.5]}), [1, -2], ["p", ""], stamp])
    t.check("change records: values of a row", lambda: t.replay("NewRow", dish, dish)[0][0]["mods"][0][1])
    t.check("change records: column types", lambda: t.replay("NewRow", dish, dish)[0][0]["columns"])
    t.check("change stream: nothing between commits", lambda: t.replay("NewRow", dish + dt.timedelta(microseconds=1), dish + dt.timedelta(microseconds=1))[0])
    t.check("change stream: start and end are inclusive", lambda: len(t.replay("NewRow", began, began)[0]))
    token = next(iter(t.changes("NewRow", began, None, ended)))[2][0][2][0][0]
    t.check("change stream: partitions have no parents at first", lambda: [child[1] for record in t.changes("NewRow", began, None, ended) for children in record[2] for child in children[2]][:1])
    t.check("change stream: by position", lambda: len(list(t.changes("NewRow", began, None, ended, named=False))) > 0)
    for name, arguments in {
        "too old": ("NewRow", began - dt.timedelta(hours=1), None, None), "bad token": ("NewRow", began, "bogus", None), "token of another stream": ("OldNew", began, token, None), "heartbeat too short": ("NewRow", began, None, None, 99), "heartbeat too long": ("NewRow", began, None, None, 300_001),
        "end before start": ("NewRow", ended, None, began), "no stream": ("Nope", began, None, None), "NULL start": ("NewRow", None, None, None), "NULL heartbeat": ("NewRow", began, None, None, None),
    }.items():  # fmt: skip
        t.check(f"change stream: {name}", lambda arguments=arguments: list(t.changes(*arguments)) and None)

    def within(snapshot_options):
        with t.db.snapshot(**snapshot_options) as snapshot:
            return len(list(snapshot.execute_sql("SELECT ChangeRecord FROM READ_NewRow(@s, @s, NULL, 1000)", params={"s": began}, param_types={"s": param_types.TIMESTAMP})))

    t.check("change stream: in a multi-use snapshot", lambda: within({"multi_use": True}) and None)
    t.check("change stream: in a stale read", lambda: within({"exact_staleness": dt.timedelta(seconds=0)}) and None)
    t.check("change stream: in a read-write transaction", lambda: t.db.run_in_transaction(lambda tx: list(tx.execute_sql("SELECT ChangeRecord FROM READ_NewRow(@s, @s, NULL, 1000)", params={"s": began}, param_types={"s": param_types.TIMESTAMP}))) and None)
    t.db.drop()
    return t.answers


def commit_stats(t):
    from google.cloud.spanner_v1 import types

    api = t.db.spanner_api
    session = api.create_session(request={"database": t.db.name})
    options = types.TransactionOptions(read_write=types.TransactionOptions.ReadWrite())
    mutation = types.Mutation(insert_or_update=types.Mutation.Write(table="Uniq", columns=["K"], values=[["1"], ["2"]]))
    response = api.commit(request=types.CommitRequest(session=session.name, single_use_transaction=options, mutations=[mutation], return_commit_stats=True))
    return response.commit_stats.mutation_count > 0


def batch_dml(tx, statements):
    status, counts = tx.batch_update(statements)
    return status.code, list(counts)


def increment(tx):
    ((value,),) = tx.execute_sql("SELECT V FROM Parents WHERE Id = 't1'")
    tx.update("Parents", ["Id", "V"], [["t1", value + 1]])
    return value


def shown(replayed):
    """Data change records without what differs from run to run: times, transaction ids, order of tables and of partitions."""
    records, _ = replayed
    times = sorted({record["ts"] for record in records})
    out = []
    for record in records:
        mods = [[dict(sorted(dict(part).items())) for part in mod] for mod in record["mods"]]
        for mod in mods:
            for part in mod:
                part.pop("U", None)
        columns = [[c[0], dict(c[1]), c[2], c[3]] for c in record["columns"]]
        out.append([times.index(record["ts"]), record["table"], record["kind"], record["capture"], mods, columns, record["system"]])
    per_transaction = {}
    for record in records:
        per_transaction.setdefault(record["transaction"], []).append(record)
    for group in per_transaction.values():
        assert {r["records"] for r in group} == {len(group)}
        assert sum(r["last"] for r in group) == group[0]["partitions"]
        assert len({r["sequence"] for r in group}) == len(group)
    return sorted(out, key=lambda item: (item[0], item[1], item[2], json.dumps(item[4])))


@pytest.fixture(scope="session")
def expected(oracle):
    if oracle is not None and os.environ.get("ROUTER_RECORD_TRANSCRIPT"):
        answers = json.loads(json.dumps(run(Target(oracle))))
        lines = [f"{json.dumps(name)}: {json.dumps(answer, ensure_ascii=False)}" for name, answer in answers.items()]
        RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return json.loads(RECORDED.read_text())


def differences(found, expected):
    found = json.loads(json.dumps(found))
    assert found.keys() == expected.keys()
    return {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]}


def test_the_embedded_store_answers_as_recorded(embedded, expected):
    assert len(expected) >= 200
    found = differences(run(Target(embedded)), expected)
    wrong = {name: pair for name, pair in found.items() if name not in DIFFERENCES}
    assert not wrong, "\n".join(f"{name}\n  embedded: {a}\n  expected: {b}" for name, (a, b) in wrong.items())


def test_the_oracle_still_answers_as_recorded(oracle, expected):
    if oracle is None:
        return  # the summary says so
    found = differences(run(Target(oracle)), expected)
    assert not found, "\n".join(f"{name}\n  emulator: {a}\n  recorded: {b}" for name, (a, b) in found.items())


def test_spanner_itself_answers_as_recorded(real_spanner, expected):
    if real_spanner is None:
        return  # the summary says so
    found = differences(run(Target(None, real_spanner)), expected)
    wrong = {name: pair for name, pair in found.items() if name not in DIFFERENCES}
    assert not wrong, "\n".join(f"{name}\n  spanner: {a}\n  expected: {b}" for name, (a, b) in wrong.items())
