"""What the admin listener answers: one method for each endpoint, and the table that leads to it.

Reads never change anything; mutations are POST and DELETE. Every reading of counters goes through
`_refresh`, of which one runs at a time: callers that come meanwhile share its result, workers are asked once,
and a client that leaves cancels nobody else's. Counting and rendering run in a thread, since a thousand
endpoints take long enough to delay a probe.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import msgspec

from router.edge.admin_guard import refusal
from router.edge.admin_http import HTML, JSON, Reply, error_reply, json_reply, text_reply
from router.edge.admin_views import (
    by_endpoint,
    cluster_lines,
    demand_rows,
    readiness_lines,
    replica_rows,
    sglang_worker,
    sglang_workers,
    without_hashes,
)
from router.edge.dashboard import CONTENT_SECURITY_POLICY, MAX_ROBOTS, page, summary
from router.edge.metrics import Totals, render_metrics, serving_snapshots
from router.routing.explain import Asked
from router.routing.spec import Weight
from router.transport.codec.robot.shown import MAX_SHOWN
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.edge.admin import AdminSource
    from router.edge.admin_http import AdminCall
    from router.edge.admin_views import ReplicaRow
    from router.telemetry import WorkerSnapshot

    Handler = Callable[[AdminCall], Awaitable[Reply]]

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
UPGRADE_STATE = ("generation", "upgrading", "upgrade_failures", "last_upgrade", "predecessor")
WORKER_PREFIX = "/workers/"
SESSION_PREFIX = "/sessions/"
_FIELD = re.compile(r"(?:^|[\s.])(url|address|endpoint|weight|id): ")
_FIRST_WORD = re.compile(r"(url|address|endpoint|weight|id)\b")


class AddReplica(msgspec.Struct):
    """POST /workers. SGLang's gateway knows more fields; they are ignored."""

    url: str
    endpoint: str | None = None
    weight: Weight = 1.0


_add_replica: msgspec.json.Decoder[AddReplica] = msgspec.json.Decoder(AddReplica)


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of one moment: of every worker known, and of those that serve."""

    state: dict[str, Any]
    snapshots: list[WorkerSnapshot]
    serving: list[WorkerSnapshot]


class AdminRoutes:
    """Answers calls from what `source` knows."""

    __slots__ = ("_below", "_refreshing", "_routes", "_source", "_token", "totals")

    def __init__(self, source: AdminSource, token: str) -> None:
        self._source = source
        self._token = token.encode()
        self.totals = Totals()
        self._refreshing: asyncio.Task[Reading] | None = None
        self._routes: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._dashboard},
            "/dashboard.json": {"GET": self._dashboard_json},
            "/livez": {"GET": self._livez},
            "/readyz": {"GET": self._readyz},
            "/health": {"GET": self._readyz},
            "/healthz": {"GET": self._readyz},
            "/metrics": {"GET": self._metrics},
            "/config_dump": {"GET": self._config_dump},
            "/clusters": {"GET": self._clusters},
            "/workers": {"GET": self._list_workers, "POST": self._add_worker},
            "/sessions": {"GET": self._sessions},
            "/v1/demand": {"GET": self._demand},
            "/server_info": {"GET": self._server_info},
            "/debug/route": {"GET": self._debug_route},
            "/debug/robots": {"GET": self._debug_robots},
            "/drain_listeners": {"POST": self._drain},
            "/upgrade": {"POST": self._upgrade},
            "/config/accept": {"POST": self._accept_held},
            "/healthcheck/fail": {"POST": self._fail},
            "/healthcheck/ok": {"POST": self._restore},
            "/logging": {"POST": self._set_log_level},
        }
        self._below: dict[str, dict[str, Handler]] = {
            WORKER_PREFIX: {"GET": self._one_worker, "DELETE": self._remove_worker},
            SESSION_PREFIX: {"DELETE": self._end_session},
        }

    async def handle(self, call: AdminCall) -> Reply:
        """Answer one call."""
        refused = refusal(call, self._token)
        if refused is not None:
            return refused
        methods = self._routes.get(call.path)
        if methods is None:
            for prefix, handlers in self._below.items():
                if call.path.startswith(prefix) and call.path != prefix:
                    methods = handlers
        if methods is None:
            listed = [f"{method} {path}" for path, handlers in self._routes.items() for method in handlers]
            listed += [f"{method} {prefix}ID" for prefix, handlers in self._below.items() for method in handlers]
            return error_reply(404, "not_found", "There is no such admin endpoint.", endpoints=sorted(listed))
        handler = methods.get("GET" if call.method == "HEAD" else call.method)
        if handler is None:
            allowed = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
            message = f"{call.path} allows {allowed}."
            return error_reply(405, "method_not_allowed", message, headers=((b"allow", allowed.encode()),))
        return await handler(call)

    # -- counters -------------------------------------------------------------------------------------

    async def _read(self) -> Reading:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = spawn(self._refresh(), "admin refresh")
        return await asyncio.shield(self._refreshing)

    async def _refresh(self) -> Reading:
        snapshots = await self._source.snapshots()
        state = self._source.state()
        await asyncio.to_thread(self.totals.add, snapshots)
        return Reading(state, snapshots, serving_snapshots(snapshots, state))

    async def _rows(self) -> list[ReplicaRow]:
        reading = await self._read()
        return replica_rows(self._source.table(), self._source.health(), reading.serving)

    # -- probes ---------------------------------------------------------------------------------------

    async def _livez(self, call: AdminCall) -> Reply:
        return text_reply("ok\n")

    async def _readyz(self, call: AdminCall) -> Reply:
        """Asks no worker: a probe must be answered whatever they do."""
        state = self._source.state()
        status = 200 if state["ready"] else 503
        if "verbose" in call.query:
            table = self._source.table()
            rows = replica_rows(table, self._source.health(), [])
            return text_reply("\n".join(readiness_lines(state, table, rows)) + "\n", status)
        return text_reply("ok\n" if state["ready"] else f"not ready: {'; '.join(state['reasons'])}\n", status)

    # -- reading --------------------------------------------------------------------------------------

    async def _dashboard(self, call: AdminCall) -> Reply:
        return Reply(200, page(), HTML, ((b"content-security-policy", CONTENT_SECURITY_POLICY),))

    async def _dashboard_json(self, call: AdminCall) -> Reply:
        reading = await self._read()
        table, health = self._source.table(), self._source.health()
        has_robots = any(seen.counters.get("robot_sessions_open") for seen in reading.serving)
        robots = await self._source.robots(MAX_ROBOTS, "") if has_robots else None
        body = await asyncio.to_thread(
            summary, self.totals, reading.serving, reading.state, table, health, robots
        )
        return Reply(200, body, JSON)

    async def _metrics(self, call: AdminCall) -> Reply:
        reading = await self._read()
        accept = call.headers.get(b"accept", b"").decode("latin-1")
        body, content_type = await asyncio.to_thread(
            render_metrics, self.totals, reading.serving, reading.state, accept
        )
        return Reply(200, body, content_type.encode())

    async def _config_dump(self, call: AdminCall) -> Reply:
        reading = await self._read()
        versions = [
            {"worker": seen.worker, "pid": seen.pid, "table_version": seen.table_version}
            for seen in reading.serving
        ]
        return json_reply(
            {
                "settings": self._source.settings(),
                "table": without_hashes(self._source.table()),
                "last_reload": reading.state.get("last_reload"),
                "certificates": reading.state.get("certificates", []),
                "config_staleness_s": reading.state.get("config_staleness_s", 0.0),
                "config": reading.state.get("config"),
                "quarantine": self._source.quarantine(),
                "workers": versions,
            }
        )

    async def _clusters(self, call: AdminCall) -> Reply:
        rows = await self._rows()
        endpoints = by_endpoint(self._source.table(), rows)
        if call.query.get("format") == "json":
            return json_reply({"endpoints": endpoints})
        return text_reply("".join(f"{line}\n" for line in cluster_lines(endpoints)))

    async def _demand(self, call: AdminCall) -> Reply:
        """Answer `{"endpoints": […], "published": …}`: see `demand_rows`, and how telling the store goes.

        It is this router's own demand. What a fleet is asked for is the sum over its routers: rows of the store's
        table Demand, which `router autoscale` follows.
        """
        demand = await self._source.demand()
        table = self._source.table()
        rows = replica_rows(table, self._source.health(), [])
        published = self._source.state().get("demand")
        return json_reply({"endpoints": demand_rows(table, rows, demand), "published": published})

    async def _server_info(self, call: AdminCall) -> Reply:
        state = self._source.state()
        return json_reply(
            {
                "version": state["version"],
                "uptime_s": round(time.time() - state["started_epoch_s"], 3),
                "started_epoch_s": state["started_epoch_s"],
                "python": platform.python_version(),
                "pid": os.getpid(),
                "ready": state["ready"],
                "draining": state["draining"],
                "workers": state["workers"],
                "config": state["config"],
                **{name: state.get(name) for name in UPGRADE_STATE},
            }
        )

    async def _debug_route(self, call: AdminCall) -> Reply:
        """Say where a request would go: ?host=&path=&key=&model=&environment=, and &without=REPLICA for what if."""
        for name in call.query:
            if name not in Asked.__struct_fields__:
                known = ", ".join(Asked.__struct_fields__)
                return error_reply(400, "bad_request", f"{name}: there is no such field; there are {known}.", name)
        asked = Asked(**call.query)
        if not asked.path.startswith("/"):
            return error_reply(400, "bad_request", "path: it must begin with '/'.", "path")
        found = await self._source.explain(asked)
        if "route" not in found:
            return error_reply(503, "no_worker", "No worker answered in time; try again.")
        return json_reply(found)

    async def _debug_robots(self, call: AdminCall) -> Reply:
        """List the open robot sessions, the worst link first: ?session=ID for one, ?limit=N for fewer."""
        for name in call.query:
            if name not in ("session", "limit"):
                message = f"{name}: there is no such field; there are session, limit."
                return error_reply(400, "bad_request", message, name)
        text = call.query.get("limit", str(MAX_SHOWN))
        if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_SHOWN):
            return error_reply(400, "bad_request", f"limit: it is a number from 1 to {MAX_SHOWN}.", "limit")
        session = call.query.get("session", "")
        found = await self._source.robots(int(text), session)
        if session and not found["robots"] and not found["silent_workers"]:
            message = f"There is no open robot session of the id {session!r}."
            return error_reply(404, "not_found", message, "session")
        return json_reply(found)

    async def _sessions(self, call: AdminCall) -> Reply:
        """List the open sticky sessions, ?endpoint=NAME for one endpoint's."""
        return json_reply({"sessions": self._source.sessions(call.query.get("endpoint"))})

    async def _end_session(self, call: AdminCall) -> Reply:
        wanted = unquote(call.path.removeprefix(SESSION_PREFIX))
        if not any(shown["session"] == wanted for shown in self._source.sessions(None)):
            return error_reply(404, "not_found", f"There is no session of the id {wanted!r}.", "session")
        code = await self._source.end_session(wanted)
        if code:
            return error_reply(503, code, "The store that keeps sessions does not answer; try again.")
        return json_reply({"terminated": wanted})

    # -- replicas, as SGLang's gateway manages its workers ----------------------------------------------

    async def _list_workers(self, call: AdminCall) -> Reply:
        return json_reply(sglang_workers(await self._rows()))

    async def _one_worker(self, call: AdminCall) -> Reply:
        wanted = unquote(call.path.removeprefix(WORKER_PREFIX))
        for row in await self._rows():
            if row.id == wanted:
                return json_reply(sglang_worker(row))
        return _no_replica(wanted)

    async def _add_worker(self, call: AdminCall) -> Reply:
        try:
            wanted = _add_replica.decode(call.body)
        except msgspec.DecodeError as failure:
            text = str(failure)
            field = text.partition("`$.")[2].partition("`")[0] or _quoted_field(text)
            return error_reply(400, "bad_request", f"{field or 'body'}: {text}", field)
        try:
            added = await self._source.add_replica(wanted.url, wanted.endpoint, wanted.weight)
        except ValueError as failure:
            return _bad_input(failure)
        location = WORKER_PREFIX + quote(str(added["id"]), safe=":")
        return json_reply(
            {
                "status": "accepted",
                "worker_id": added["id"],
                "location": location,
                "message": "The replica takes requests once its health checks pass.",
                **added,
            },
            202,
            ((b"location", location.encode()),),
        )

    async def _remove_worker(self, call: AdminCall) -> Reply:
        wanted = unquote(call.path.removeprefix(WORKER_PREFIX))
        try:
            removed = await self._source.remove_replica(wanted)
        except ValueError as failure:
            return _bad_input(failure)
        if not removed:
            return _no_replica(wanted)
        message = "The replica takes no new requests; those on it finish."
        return json_reply({"status": "removed", "worker_id": wanted, "message": message})

    # -- mutations of the daemon ------------------------------------------------------------------------

    async def _drain(self, call: AdminCall) -> Reply:
        # Not of this request: the drain outlives it, and ends with the daemon.
        spawn(self._source.drain(), "admin drain")
        return json_reply({"draining": True}, 202)

    async def _upgrade(self, call: AdminCall) -> Reply:
        """How it goes is told by /server_info: of this process, or of the one that took over."""
        refused = self._source.upgrade()
        if refused:
            return error_reply(409, "no_upgrade", f"No upgrade: {refused}.")
        return json_reply({"upgrading": True, "pid": os.getpid()}, 202)

    async def _accept_held(self, call: AdminCall) -> Reply:
        return json_reply({"accepted": True, "removed_ready_replicas": self._source.accept_held()})

    async def _fail(self, call: AdminCall) -> Reply:
        self._source.set_ready(False)
        return json_reply({"ready": False})

    async def _restore(self, call: AdminCall) -> Reply:
        self._source.set_ready(True)
        return json_reply({"ready": bool(self._source.state()["ready"])})

    async def _set_log_level(self, call: AdminCall) -> Reply:
        level = call.query.get("level", "").upper()
        if level not in LOG_LEVELS:
            return error_reply(400, "bad_request", f"level: it must be one of {', '.join(LOG_LEVELS)}.", "level")
        self._source.set_log_level(level)
        return json_reply({"level": level})


def _no_replica(wanted: str) -> Reply:
    return error_reply(404, "not_found", f"There is no replica of the id {wanted!r}.", "worker_id")


def _bad_input(failure: ValueError) -> Reply:
    """Reply 400, naming the field that the text names: `address: …` at the end of a path, or as its first word."""
    text = str(failure)
    found = _FIELD.search(text) or _FIRST_WORD.match(text)
    if found is None:
        return error_reply(400, "bad_request", text)
    param = "url" if found[1] == "address" else found[1]  # the table calls it an address
    return error_reply(400, "bad_request", f"{param}: {text[found.end() :] if found.re is _FIELD else text}", param)


def _quoted_field(text: str) -> str | None:
    """Return the field that msgspec says is missing: it quotes that one without a path."""
    return text.partition("field `")[2].partition("`")[0] or None
