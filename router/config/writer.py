"""What operators and sidecars write to the store, checked as the routers will read it.

Every change is one transaction. What a router would put into quarantine is refused here, with the field named.
Tokens are `token_admin.py`'s, sessions `session_admin.py`'s: both write by what is open here.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from router.config.client import COMMIT_TIME, RpcError, Status, StoreClient
from router.config.errors import StoreError, StoreUnavailableError
from router.config.rows import (
    RowError,
    read_endpoint,
    read_region,
    read_replica,
    read_route,
)
from router.config.static import ConfigError, check_host, check_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from router.config.client import Mutation, Result, Transaction
    from router.config.target import Target

_REPLICA = ("NodeId", "RegionId", "Zone", "Address", "Port", "Weight", "State", "Generation", "Capabilities")
_ENDPOINT = ("Environment", "Policy", "Health", "State")
_AWAY = frozenset((Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.CANCELLED))

Item = dict[str, Any]
"""One row as the command line shows it, keys in snake case."""


@asynccontextmanager
async def open_writer(target: Target) -> AsyncIterator[Writer]:
    """Connect; every error of the store comes out as a StoreError in words."""
    client = StoreClient(target)
    try:
        with in_words(target):
            await client.open_session()
        yield Writer(client, target)
    finally:
        await client.close()


class in_words:  # noqa: N801 - used as a statement
    """Turns what the store answers into a StoreError that says what to do."""

    __slots__ = ("_target",)

    def __init__(self, target: Target) -> None:
        self._target = target

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        """Raise what the failure means."""
        if not isinstance(failure, RpcError):
            return
        text = failure.details() or failure.code().name
        if failure.code() in _AWAY:
            hint = "; start it with `router store`" if self._target.kind == "embedded" else ""
            raise StoreUnavailableError(f"{self._target} does not answer ({text}){hint}") from None
        if failure.code() is Status.NOT_FOUND and ("atabase" in text or "able" in text):
            raise StoreError(f"{self._target}: {text}; make the schema with `router store init`") from None
        raise StoreError(f"{self._target}: {text}") from None


class Writer:
    """One open connection to the store. Not found, exists already, unusable: StoreError."""

    def __init__(self, client: StoreClient, target: Target) -> None:
        self._client = client
        self._target = target

    # -- endpoints --------------------------------------------------------------------------------------

    async def put_endpoint(
        self,
        name: str,
        *,
        create: bool,
        hosts: tuple[str, ...] = (),
        prefixes: tuple[str, ...] = ("/",),
        unauthenticated: bool | None = None,
        sessioned: bool | None = None,
        **changes: Any,
    ) -> Item:
        """Create or change an endpoint; `changes` are environment, state, policy and health (texts of JSON).

        `unauthenticated`, where it is not None, is put into the policy, which else keeps what it said of it;
        `sessioned` gives it sessions as they are by default, or takes them away. With `hosts` it gets a route from
        each host and prefix in the same transaction.
        """
        for host in hosts:
            _refuse(check_host, host, "--host")

        async def work(t: Transaction) -> Item:
            row = await _row(t, "Endpoints", ("EndpointId",), (name,), _ENDPOINT)
            _expect(row, create, "endpoint", name)
            known = dict(zip(_ENDPOINT, row or ["main", None, None, "ACTIVE"], strict=True))
            before = decoded(known["Policy"])
            for key, value in changes.items():
                if value is not None:
                    known[key.capitalize()] = value
            # Said by a flag of its own, so that another policy does not change it in passing.
            is_open = unauthenticated
            after = decoded(known["Policy"])
            if is_open is None and isinstance(before, dict) and isinstance(after, dict):
                is_open = None if "unauthenticated" in after else before.get("unauthenticated")
            if is_open is not None:
                known["Policy"] = _with(known["Policy"], "unauthenticated", is_open)
            if sessioned is not None and bool(_said(known["Policy"], "sessions")) != sessioned:
                known["Policy"] = _with(known["Policy"], "sessions", {} if sessioned else None)
            if known["State"] not in ("ACTIVE", "PAUSED"):
                raise StoreError(f"--state: {known['State']!r} is neither ACTIVE nor PAUSED")
            try:
                read_endpoint(name, tuple(known[column] for column in _ENDPOINT))
            except RowError as reason:
                raise StoreError(str(reason)) from None
            columns = ("EndpointId", *_ENDPOINT, "UpdatedAt")
            t.write("insert_or_update", "Endpoints", columns, (name, *known.values(), COMMIT_TIME))
            for host in hosts:
                for prefix in prefixes:
                    there = await _row(t, "Routes", ("RouteSetId", "RouteId"), (host.lower(), prefix), ("Action",))
                    other = name if there is None else _endpoint_of(there[0])
                    if other != name:
                        hint = "`router route update` moves it"
                        raise StoreError(f"--host: {host} {prefix} leads to {other!r}; {hint}")
                    await _write_route(t, host, prefix, name, 0)
            return {"endpoint": name, **_shown(known)}

        return await self._transact(work)

    async def endpoints(self, name: str | None = None) -> list[Item]:
        """List endpoints with how many replicas each has, and how many are READY."""
        rows = await self._rows("Endpoints", ("EndpointId",), _ENDPOINT, name)
        counts = await self._query("SELECT EndpointId, State, COUNT(*) FROM Replicas GROUP BY EndpointId, State")
        items = []
        for endpoint, *values in rows:
            states = {state: int(count) for owner, state, count in counts if owner == endpoint}
            shown = _shown(dict(zip(_ENDPOINT, values, strict=True)))
            items.append(
                {"endpoint": endpoint, **shown, "replicas": sum(states.values()), "ready": states.get("READY", 0)}
            )
        return items

    async def delete_endpoint(self, name: str) -> None:
        """Delete an endpoint, its replicas and the routes that lead to it."""

        async def work(t: Transaction) -> None:
            _expect(await _row(t, "Endpoints", ("EndpointId",), (name,), ("State",)), False, "endpoint", name)
            rows, _ = await t.execute("SELECT RouteSetId, RouteId, Action FROM Routes")
            for route_set, route, action in rows:
                if _endpoint_of(action) == name:
                    t.write("delete", "Routes", (), (route_set, route))
            t.write("delete", "Endpoints", (), (name,))

        await self._transact(work)

    # -- replicas ---------------------------------------------------------------------------------------

    async def put_replica(self, endpoint: str, replica: str, *, create: bool, **changes: Any) -> Item:
        """Create or change a replica by hand; `changes` are by the names of the columns, in snake case."""

        async def work(t: Transaction) -> Item:
            await _expect_endpoint(t, endpoint)
            row = await _row(t, "Replicas", ("EndpointId", "ReplicaId"), (endpoint, replica), _REPLICA)
            _expect(row, create, "replica", f"{endpoint}/{replica}")
            known = dict(zip(_REPLICA, row or ("", "", "", "", 0, 1.0, "READY", 1, None), strict=True))
            for key, value in changes.items():
                if value is not None:
                    known[_COLUMNS[key]] = value
            _write_replica(t, endpoint, replica, known)
            return {"endpoint": endpoint, "replica": replica, **_shown(known)}

        return await self._transact(work)

    async def replicas(self, endpoint: str | None = None, replica: str | None = None) -> list[Item]:
        """List replicas."""
        columns = ("ReplicaId", *_REPLICA)
        rows = await self._rows("Replicas", ("EndpointId",), columns, endpoint)
        return [
            {"endpoint": owner, "replica": values[0], **_shown(dict(zip(_REPLICA, values[1:], strict=True)))}
            for owner, *values in rows
            if replica is None or values[0] == replica
        ]

    async def delete_replica(self, endpoint: str, replica: str) -> None:
        """Delete a replica."""

        async def work(t: Transaction) -> None:
            row = await _row(t, "Replicas", ("EndpointId", "ReplicaId"), (endpoint, replica), ("State",))
            _expect(row, False, "replica", f"{endpoint}/{replica}")
            t.write("delete", "Replicas", (), (endpoint, replica))

        await self._transact(work)

    async def register(self, endpoint: str, replica: str, generation: int, **values: Any) -> None:
        """Write a replica for its sidecar. StoreError if a newer incarnation has it: `generation` fences.

        The same generation again is no error. Values are those of `put_replica`.
        """

        async def work(t: Transaction) -> None:
            await _expect_endpoint(t, endpoint)
            if await _fence(t, endpoint, replica, generation) == generation:
                row = await _row(t, "Replicas", ("EndpointId", "ReplicaId"), (endpoint, replica), ("NodeId",))
                if row is not None and row[0] != values.get("node", ""):
                    raise FencedError(
                        f"replica {endpoint}/{replica} is at generation {generation} on node {row[0]} already: "
                        "two sidecars have one name"
                    )
            known: dict[str, Any] = dict(zip(_REPLICA, ("", "", "", "", 0, 1.0, "STARTING", 1, None), strict=True))
            known |= {_COLUMNS[key]: value for key, value in values.items()} | {"Generation": generation}
            _write_replica(t, endpoint, replica, known)

        await self._transact(work)

    async def set_state(self, endpoint: str, replica: str, generation: int, state: str) -> None:
        """Change a replica's state as its sidecar. StoreError if it is gone, or a newer incarnation's."""

        async def work(t: Transaction) -> None:
            if await _fence(t, endpoint, replica, generation) is None:
                raise StoreError(f"replica {endpoint}/{replica} is not registered")
            columns = ("EndpointId", "ReplicaId", "State", "UpdatedAt")
            t.write("update", "Replicas", columns, (endpoint, replica, state, COMMIT_TIME))

        await self._transact(work)

    async def withdraw(self, endpoint: str, replica: str, generation: int) -> None:
        """Delete a replica as its sidecar; one that is gone is no error."""

        async def work(t: Transaction) -> None:
            if await _fence(t, endpoint, replica, generation) is not None:
                t.write("delete", "Replicas", (), (endpoint, replica))

        await self._transact(work)

    async def generation(self, endpoint: str, replica: str) -> int:
        """Return the generation that a replica's row has; 0 if there is none."""
        rows = await self._query(
            "SELECT Generation FROM Replicas WHERE EndpointId = @e AND ReplicaId = @r",
            {"e": endpoint, "r": replica},
        )
        return int(rows[0][0]) if rows else 0

    # -- routes -----------------------------------------------------------------------------------------

    async def put_route(self, host: str, prefix: str, endpoint: str, priority: int, *, create: bool) -> Item:
        """Lead a host and path prefix to an endpoint; without one to whichever serves the model of the body."""
        _refuse(check_host, host, "HOST")

        async def work(t: Transaction) -> Item:
            if endpoint:
                await _expect_endpoint(t, endpoint)
            row = await _row(t, "Routes", ("RouteSetId", "RouteId"), (host.lower(), prefix), ("Priority",))
            _expect(row, create, "route", f"{host} {prefix}")
            return await _write_route(t, host, prefix, endpoint, priority)

        return await self._transact(work)

    async def routes(self, host: str | None = None) -> list[Item]:
        """List routes, by host and priority."""
        hosts = await self._query("SELECT Host, RouteSetId FROM Hosts")
        rows = await self._query("SELECT RouteSetId, RouteId, Priority, Match, Action FROM Routes")
        found = [
            {
                "host": name, "route": route, "path_prefix": decoded(match).get("path_prefix", "/"),
                "endpoint": _endpoint_of(action), "priority": int(priority),
            }
            for name, wanted in hosts
            for route_set, route, priority, match, action in rows
            if route_set == wanted and (host is None or name == host.lower())
        ]  # fmt: skip
        return sorted(found, key=lambda item: (item["host"], -item["priority"], item["path_prefix"]))

    async def delete_route(self, host: str, prefix: str) -> None:
        """Delete a route; the host goes with its last one."""

        async def work(t: Transaction) -> None:
            key = (host.lower(), prefix)
            row = await _row(t, "Routes", ("RouteSetId", "RouteId"), key, ("Priority",))
            _expect(row, False, "route", f"{host} {prefix}")
            rows, _ = await t.execute("SELECT RouteId FROM Routes WHERE RouteSetId = @s", {"s": host.lower()})
            if len(rows) > 1:
                t.write("delete", "Routes", (), key)
            else:
                t.write("delete", "Hosts", (), (host.lower(),))
                t.write("delete", "RouteSets", (), (host.lower(),))

        await self._transact(work)

    # -- regions ----------------------------------------------------------------------------------------

    async def put_region(
        self, region: str, *, create: bool, state: str | None, weight: float | None, failover: tuple[str, ...]
    ) -> Item:
        """Create or change a region; `failover` are the regions to spill over to, in order."""
        _refuse(check_name, region, "REGION")
        if weight is not None and not 0.0 <= weight <= 1_000.0:  # NaN is neither
            raise StoreError(f"--weight: {weight} is not between 0 and 1000")

        async def work(t: Transaction) -> Item:
            columns = ("State", "Weight", "Failover")
            row = await _row(t, "Regions", ("RegionId",), (region,), columns)
            _expect(row, create, "region", region)
            known = dict(zip(columns, row or ("READY", 1.0, None), strict=True))
            known["State"] = state or known["State"]
            known["Weight"] = known["Weight"] if weight is None else weight
            if failover:
                known["Failover"] = msgspec.json.encode(failover).decode()
            try:
                read_region(region, tuple(known.values()))
            except RowError as reason:
                raise StoreError(str(reason)) from None
            t.write("insert_or_update", "Regions", ("RegionId", *columns, "UpdatedAt"),
                    (region, *known.values(), COMMIT_TIME))  # fmt: skip
            return {"region": region, **_shown(known)}

        return await self._transact(work)

    async def regions(self, region: str | None = None) -> list[Item]:
        """List regions."""
        columns = ("State", "Weight", "Failover")
        rows = await self._rows("Regions", ("RegionId",), columns, region)
        return [{"region": name, **_shown(dict(zip(columns, values, strict=True)))} for name, *values in rows]

    async def delete_region(self, region: str) -> None:
        """Delete a region that no replica is in."""

        async def work(t: Transaction) -> None:
            _expect(await _row(t, "Regions", ("RegionId",), (region,), ("State",)), False, "region", region)
            rows, _ = await t.execute("SELECT COUNT(*) FROM Replicas WHERE RegionId = @r", {"r": region})
            if int(rows[0][0]):
                raise StoreError(f"region {region!r} has {rows[0][0]} replicas: move or delete them first")
            t.write("delete", "Regions", (), (region,))

        await self._transact(work)

    # -- the store --------------------------------------------------------------------------------------

    async def query(self, sql: str, params: Item | None = None) -> list[list[Any]]:
        """Run a query of the caller's own."""
        return await self._query(sql, params)

    async def transact(self, work: Callable[[Transaction], Awaitable[Result]]) -> Result:
        """Run a transaction of the caller's own."""
        return await self._transact(work)

    async def _transact(self, work: Callable[[Transaction], Awaitable[Result]]) -> Result:
        with in_words(self._target):
            return await self._client.transact(work)

    async def write(self, mutations: list[Mutation]) -> None:
        """Commit mutations of the caller's own, without looking."""
        with in_words(self._target):
            await self._client.write(mutations)

    async def _query(self, sql: str, params: Item | None = None) -> list[list[Any]]:
        with in_words(self._target):
            rows, _ = await self._client.execute(sql, params)
        return rows

    async def _rows(
        self, table: str, keys: tuple[str, ...], columns: tuple[str, ...], key: str | None
    ) -> list[list[Any]]:
        sql = f"SELECT {', '.join(keys + columns)} FROM {table}"  # noqa: S608 - names of ours
        if key is None:
            return await self._query(f"{sql} ORDER BY {', '.join(keys)}")
        return await self._query(f"{sql} WHERE {keys[0]} = @key", {"key": key})


_COLUMNS = {
    "node": "NodeId", "region": "RegionId", "zone": "Zone", "address": "Address", "port": "Port",
    "weight": "Weight", "state": "State", "generation": "Generation", "capabilities": "Capabilities",
}  # fmt: skip
_SHOWN = {column: name for name, column in _COLUMNS.items()}
_NUMBERS = ("Port", "Generation", "Priority")


async def _row(
    t: Transaction, table: str, keys: tuple[str, ...], key: tuple[str, ...], columns: tuple[str, ...]
) -> list[Any] | None:
    where = " AND ".join(f"{name} = @k{i}" for i, name in enumerate(keys))
    sql = f"SELECT {', '.join(columns)} FROM {table} WHERE {where}"  # noqa: S608 - names of ours
    rows, _ = await t.execute(sql, {f"k{i}": value for i, value in enumerate(key)})
    return rows[0] if rows else None


async def _expect_endpoint(t: Transaction, endpoint: str) -> None:
    if await _row(t, "Endpoints", ("EndpointId",), (endpoint,), ("State",)) is None:
        raise StoreError(f"endpoint {endpoint!r} is not there: `router endpoint create {endpoint}`")


async def _fence(t: Transaction, endpoint: str, replica: str, generation: int) -> int | None:
    """Return the generation in the store, None if there is no row; StoreError if it is newer."""
    row = await _row(t, "Replicas", ("EndpointId", "ReplicaId"), (endpoint, replica), ("Generation",))
    if row is None:
        return None
    if int(row[0]) > generation:
        raise FencedError(
            f"replica {endpoint}/{replica} is at generation {row[0]}: this incarnation, {generation}, is older"
        )
    return int(row[0])


class FencedError(StoreError):
    """A newer incarnation has taken over; the older one must stop writing."""


def _write_replica(t: Transaction, endpoint: str, replica: str, known: Item) -> None:
    row = tuple(known[column] for column in _REPLICA)
    try:
        read_replica(replica, row)
    except RowError as reason:
        raise StoreError(str(reason)) from None
    columns = ("EndpointId", "ReplicaId", *_REPLICA, "UpdatedAt")
    t.write("insert_or_update", "Replicas", columns, (endpoint, replica, *row, COMMIT_TIME))


async def _write_route(t: Transaction, host: str, prefix: str, endpoint: str, priority: int) -> Item:
    """Write host, route set and route. A route is named by its prefix, a set by its host."""
    host = host.lower()
    match = msgspec.json.encode({"path_prefix": prefix}).decode()
    action = msgspec.json.encode({"endpoint": endpoint} if endpoint else {"by_model": True}).decode()
    try:
        read_route((priority, match, action))
    except RowError as reason:
        raise StoreError(str(reason)) from None
    t.write("insert_or_update", "RouteSets", ("RouteSetId", "UpdatedAt"), (host, COMMIT_TIME))
    t.write("insert_or_update", "Routes", ("RouteSetId", "RouteId", "Priority", "Match", "Action", "UpdatedAt"),
            (host, prefix, priority, match, action, COMMIT_TIME))  # fmt: skip
    t.write("insert_or_update", "Hosts", ("Host", "RouteSetId", "UpdatedAt"), (host, host, COMMIT_TIME))
    return {"host": host, "route": prefix, "path_prefix": prefix, "endpoint": endpoint, "priority": priority}


def _with(policy: Any, key: str, value: Any) -> Any:
    """Return the JSON text of a policy with one key changed; what cannot be read is for the check to refuse."""
    found = decoded(policy)
    return msgspec.json.encode({**found, key: value}).decode() if isinstance(found, dict) else policy


def _said(policy: Any, key: str) -> Any:
    """Return whether a policy says anything of a key."""
    found = decoded(policy)
    return isinstance(found, dict) and found.get(key) is not None


def _expect(row: list[Any] | None, create: bool, kind: str, name: str) -> None:
    if create and row is not None:
        raise StoreError(f"{kind} {name!r} is there already: use `router {kind} update`")
    if not create and row is None:
        raise StoreError(f"{kind} {name!r} is not there")


def _refuse(check: Callable[[str], None], value: str, field: str) -> None:
    try:
        check(value)
    except ConfigError as failure:
        raise StoreError(f"{field}: {failure}") from None


def _shown(known: Item) -> Item:
    shown = {}
    for column, value in known.items():
        if column in ("Policy", "Health", "Capabilities", "Failover"):
            shown[_SHOWN.get(column, column.lower())] = decoded(value)
        else:
            shown[_SHOWN.get(column, column.lower())] = int(value) if column in _NUMBERS else value
    return shown


def decoded(text: Any) -> Any:
    """Return what a column of JSON says, for showing: `{}` where it is empty, what cannot be read as it stands."""
    try:
        return msgspec.json.decode(text) if isinstance(text, str) else {}
    except msgspec.DecodeError:
        return text


def _endpoint_of(action: Any) -> str:
    found = decoded(action)
    return str(found.get("endpoint", "")) if isinstance(found, dict) else ""
