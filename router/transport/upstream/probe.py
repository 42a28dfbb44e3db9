"""Active health checks: one prober per replica, beside the data path, in the supervisor.

`tcp` asks whether the port accepts. `http` asks for a 2xx on a path, and on 404 for the fall-back path, since
SGLang's Rust front end has no /ready. A verdict changes after so many checks in a row; the very first check
decides alone, so that a dead replica of a fresh table is not tried.
"""

from __future__ import annotations

import asyncio
from random import random
from time import monotonic
from typing import TYPE_CHECKING

from router.errors import ProxyError
from router.routing.load import split_address
from router.transport.codec.h1.head import MAX_HEAD_BYTES, parse_response
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.routing.spec import HealthSpec, TableSpec


class Verdict:
    """What is known of one replica."""

    __slots__ = ("address", "checked_s", "is_healthy", "reason", "same")

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_healthy = True
        self.reason = "not checked yet"
        self.checked_s: float | None = None
        self.same = 0  # checks in a row that contradict `is_healthy`


class HealthMonitor:
    """Runs a prober for every replica of the table; tells `on_change(endpoint, replica, is_healthy)`."""

    def __init__(self, on_change: Callable[[str, str, bool], None]) -> None:
        self._on_change = on_change
        self._probers: dict[tuple[str, str, str, HealthSpec], asyncio.Task[None]] = {}
        self.verdicts: dict[tuple[str, str], Verdict] = {}

    def follow(self, table: TableSpec) -> None:
        """Check the replicas of `table` from now on; those that stayed keep their prober and verdict."""
        wanted = {
            (endpoint.name, replica.id, replica.address, endpoint.health)
            for endpoint in table.endpoints
            for replica in endpoint.replicas
        }
        for key in [key for key in self._probers if key not in wanted]:
            self._probers.pop(key).cancel()
        names = {key[:2] for key in wanted}
        for name in [name for name in self.verdicts if name not in names]:
            del self.verdicts[name]
        for key in wanted - self._probers.keys():
            endpoint, replica, address, spec = key
            verdict = self.verdicts.get((endpoint, replica))
            if verdict is None or verdict.address != address:  # at another address it is another replica
                verdict = self.verdicts[endpoint, replica] = Verdict(address)
            if spec.kind == "none":
                verdict.reason = "no active checks"
                if not verdict.is_healthy:
                    verdict.is_healthy = True
                    self._on_change(endpoint, replica, True)
                continue
            self._probers[key] = spawn(self._probe(endpoint, replica, address, spec), f"probe {replica}")

    def unhealthy(self) -> list[tuple[str, str]]:
        """Return (endpoint, replica) of all that fail, for a worker that starts."""
        return [name for name, verdict in self.verdicts.items() if not verdict.is_healthy]

    def close(self) -> None:
        """Stop checking."""
        for task in self._probers.values():
            task.cancel()
        self._probers.clear()

    async def _probe(self, endpoint: str, replica: str, address: str, spec: HealthSpec) -> None:
        while True:
            complaint = await check(address, spec)
            self._judge(endpoint, replica, spec, complaint)
            # A tenth of jitter, so that many probers do not move in step.
            await asyncio.sleep(spec.interval_s * (0.95 + random() * 0.1))

    def _judge(self, endpoint: str, replica: str, spec: HealthSpec, complaint: str) -> None:
        verdict = self.verdicts.setdefault((endpoint, replica), Verdict(""))
        is_first = verdict.checked_s is None
        verdict.checked_s = monotonic()
        verdict.reason = complaint or "ok"
        is_good = not complaint
        if is_good == verdict.is_healthy:
            verdict.same = 0
            return
        verdict.same += 1
        needed = 1 if is_first else spec.healthy_after if is_good else spec.unhealthy_after
        if verdict.same >= needed:
            verdict.is_healthy = is_good
            verdict.same = 0
            self._on_change(endpoint, replica, is_good)


async def check(address: str, spec: HealthSpec) -> str:
    """Check once; return why it failed, or an empty text."""
    try:
        async with asyncio.timeout(spec.timeout_s):
            if spec.kind == "tcp":
                return await _check_port(address)
            status = await _ask(address, spec.path)
            if status == 404 and spec.fallback_path:
                status = await _ask(address, spec.fallback_path)
            return "" if 200 <= status < 300 else f"status {status}"
    except TimeoutError:
        return f"no answer in {spec.timeout_s:g} s"
    except OSError as failure:
        return (failure.strerror or str(failure)).lower()
    except ValueError as failure:
        return str(failure)


async def _check_port(address: str) -> str:
    _, host, port = split_address(address)
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    return ""


async def _ask(address: str, path: str) -> int:
    """Return the status of GET `path`; ValueError for something that is not HTTP."""
    _, host, port = split_address(address)
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_HEAD_BYTES)
    try:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n".encode())
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise ValueError("the answer is not HTTP") from None
    finally:
        writer.close()
    parsed = parse_response(raw[:-4])
    if isinstance(parsed, ProxyError):
        raise ValueError(  # noqa: TRY004 - the bytes are wrong, not a type
            f"the answer is not HTTP: {parsed.detail}")
    return parsed[0].shape.status
