"""`router store init`: instance, database and schema, on any target. Repeating it does no harm.

Uses the official client, whose admin calls and long-running operations are the only ones of their kind here.
Blocking; run it from the command line or a thread.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any

import msgspec
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import spanner

from router.config.errors import StoreError, StoreUnavailableError
from router.config.schema import MIGRATIONS, SCHEMA_KEY, SESSION_KEY, SESSION_VERSION, STREAM
from router.session_book import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from router.config.target import Target

OPERATION_S = 120.0
REACH_S = 10.0
_CREATE = re.compile(r"\s*CREATE\s+(?:UNIQUE\s+|CHANGE\s+)*(TABLE|INDEX|STREAM)\s+`?(\w+)", re.IGNORECASE)


def connect(target: Target) -> Any:
    """Return the official client of the target."""
    if target.is_secure and target.kind == "spanner":
        return spanner.Client(project=target.project, disable_builtin_metrics=True)
    if target.kind == "omni":
        return spanner.Client(
            client_options=ClientOptions(api_endpoint=target.address),
            instance_type="omni",
            use_plain_text=not target.is_secure,
        )
    return spanner.Client(
        project=target.project,
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
        client_options=ClientOptions(api_endpoint=target.address),
        disable_builtin_metrics=True,
    )


def initialise(
    target: Target,
    say: Callable[[str], None] = lambda _: None,
    migrations: Sequence[Sequence[str]] = MIGRATIONS,
) -> int:
    """Make what is missing; return the schema's version. StoreError says what went wrong."""
    reach(target)
    client = connect(target)
    try:
        return _migrate(make_database(client, target, say), say, migrations)
    except exceptions.ServiceUnavailable as failure:
        raise StoreUnavailableError(f"{target} does not answer: {failure.message}") from None
    except exceptions.GoogleAPICallError as failure:
        raise StoreError(f"{target}: {failure.message}") from None


def reach(target: Target, timeout_s: float = REACH_S) -> None:
    """Wait until the store accepts a connection: the official client would retry without end, or a pause."""
    if target.is_secure:
        return
    import grpc  # noqa: PLC0415

    with grpc.insecure_channel(target.address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout_s)
        except grpc.FutureTimeoutError:
            hint = "; start it with `router store`" if target.kind == "embedded" else ""
            raise StoreUnavailableError(f"{target} does not answer within {timeout_s:g} s{hint}") from None


def make_database(client: Any, target: Target, say: Callable[[str], None] = lambda _: None) -> Any:
    """Make instance and database where they are missing; return the database, as the official client has it."""
    instance = client.instance(target.instance)
    if not target.is_secure and not instance.exists():
        say(f"making instance {target.instance}")
        configuration = f"projects/{target.project}/instanceConfigs/emulator-config"
        client.instance(
            target.instance, configuration_name=configuration, display_name=target.instance, node_count=1
        ).create().result(OPERATION_S)
    database = instance.database(target.database.split("/")[5])
    if not database.exists():
        say(f"making database {target.database}")
        database.create().result(OPERATION_S)
    return database


def _migrate(database: Any, say: Callable[[str], None], migrations: Sequence[Sequence[str]]) -> int:
    version, row, there = _version(database)
    if version > len(migrations):
        say(f"the schema is at {version}, newer than this program's {len(migrations)}: left as it is")
        return version
    for step in range(version + 1, len(migrations) + 1):
        say(f"migrating to schema {step}")
        missing = [statement for statement in migrations[step - 1] if _name(statement) not in there]
        if missing:  # an init may have broken off between making it and saying so
            database.update_ddl(missing).result(OPERATION_S)
    if version < len(migrations) or not row:
        # Also where there is nothing to migrate: an init may have broken off just before this.
        value = {"oldest_client": 1, "identity": secrets.token_hex(16), **row, "version": len(migrations)}
        _write_meta(database, SCHEMA_KEY, value)
    if len(migrations) >= SESSION_VERSION and not _has_row(database, SESSION_KEY):
        _write_meta(database, SESSION_KEY, {"keys": [secrets.token_hex(KEY_BYTES)]})
    return len(migrations)


def _version(database: Any) -> tuple[int, dict[str, Any], set[str]]:
    """Return the schema's version (0: there is none), the row that says it ({} if missing), and what is there."""
    database.reload()
    there = {name for statement in database.ddl_statements if (name := _name(statement))}
    if "TABLE Meta" not in there:
        return 0, {}, there
    with database.snapshot() as snapshot:
        rows = list(snapshot.read("Meta", ["V"], spanner.KeySet(keys=[[SCHEMA_KEY]])))  # type: ignore[no-untyped-call]
    if rows:
        value = dict(rows[0][0] or {})
        return int(value.get("version", 0)) or 1, value, there
    if f"STREAM {STREAM}" in there:
        return 1, {}, there  # an init that broke off before it said so
    raise StoreError("the schema is half made, by an init that broke off: drop the database and try again")


def _name(statement: str) -> str:
    """Return what a CREATE makes, as in `TABLE Meta`; empty for any other statement."""
    found = _CREATE.match(statement)
    return "" if found is None else f"{found[1].upper()} {found[2]}"


def _has_row(database: Any, key: str) -> bool:
    with database.snapshot() as snapshot:
        return bool(list(snapshot.read("Meta", ["K"], spanner.KeySet(keys=[[key]]))))  # type: ignore[no-untyped-call]


def _write_meta(database: Any, key: str, value: dict[str, Any]) -> None:
    with database.batch() as batch:
        batch.insert_or_update(
            "Meta", ["K", "V", "UpdatedAt"],
            [[key, msgspec.json.encode(value).decode(), spanner.COMMIT_TIMESTAMP]],
        )  # fmt: skip
