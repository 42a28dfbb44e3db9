"""The interleaved run: direct, ours, peer, direct, ours, the next peer, and so on, round after round.

Machines drift by a factor of two within an hour, so a figure only counts beside one taken a second
earlier. Hence every peer has its own direct and its own ours next to it (a *group*), and everything
reported is a ratio or a difference within a group. A stage (what the proxies speak, and the replica behind
them) has its own proxies, started once. Imports `processes`, `measures`, `peers`, `certificate`, `cpu`, `pins`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from loadtest.certificate import make_certificate
from loadtest.clients.window import Result
from loadtest.cpu import process_tree
from loadtest.measures import EVENT_INTERVAL_MS, STAGES, STREAM_EVENTS, Measure, Stage, stage_of
from loadtest.peers import Nginx, Ours
from loadtest.peers.base import SECURE, Peer, Readiness, Site
from loadtest.peers.ours import CHECKOUT
from loadtest.processes import Child, Fleet, Generator, NotReadyError, free_ports, wait_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadtest.pins import Pins

DIRECT = "direct"
OURS = "ours"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: `proxy` is direct, ours or a peer; `beside` the peer whose group it belongs to.

    `main_cpu_ns` is the CPU time of the processes that relay (for ours the workers, without their
    supervisor); `result.cpu_ns` has all of them; `main_peak_bytes` is the most memory they held. All are zero for
    direct.
    """

    measure: str
    round: int
    beside: str
    proxy: str
    main_cpu_ns: int
    result: Result
    main_peak_bytes: int = 0

    def cpu_us(self, *, main_only: bool = False) -> float | None:
        """CPU microseconds per unit, of all processes or of the relaying ones; None for direct."""
        total = self.main_cpu_ns if main_only else sum(self.result.cpu_ns.values())
        if self.proxy == DIRECT or not self.result.units:
            return None
        return total / self.result.units / 1e3

    def peak_mib(self) -> float | None:
        """Most that the relaying processes held in memory, in MiB; None for direct."""
        return self.main_peak_bytes / (1 << 20) if self.main_peak_bytes else None

    def rate(self) -> float:
        """Units per second."""
        return self.result.units / self.result.elapsed_s if self.result.elapsed_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run; `duration_s` is one window, `rate_per_s` the open loop's."""

    measures: list[Measure]
    peers: list[Peer]
    ours: Ours
    rounds: int
    duration_s: float
    rate_per_s: float
    pins: Pins

    def groups(self, measure: Measure) -> list[str]:
        """Peers that can do `measure`; with none left, ours still runs beside direct."""
        return [peer.name for peer in self.peers if measure.work in peer.works] or [DIRECT]

    def slots(self) -> int:
        """Measurements in the whole run."""
        sizes = (len(order_of(one, name)) for one in self.measures for name in self.groups(one))
        return self.rounds * sum(sizes)

    def expected_s(self) -> float:
        """Time the windows and warm-ups take; starting the proxies comes on top."""
        per_round = sum(
            len(order_of(one, name)) * (one.warmup_s + (one.work_s or self.duration_s))
            for one in self.measures
            for name in self.groups(one)
        )
        return self.rounds * per_round


@dataclass(frozen=True, slots=True)
class Target:
    """A port to send to, and the processes behind it that are charged."""

    port: int
    pids: list[int]
    main_pids: list[int]


def group_order(peer: str) -> tuple[str, ...]:
    """Order of the measurements in the group of `peer`."""
    return (DIRECT, OURS) if peer == DIRECT else (DIRECT, OURS, peer)


def order_of(measure: Measure, peer: str) -> tuple[str, ...]:
    """Order at this measure: without direct where the replica does not speak what is measured."""
    order = group_order(peer)
    return order if stage_of(measure.work).has_direct else order[1:]


def run(plan: Plan, fleet: Fleet, folder: Path, failed: list[str]) -> Iterator[Slot]:
    """Measure everything, yielding each slot as it is done.

    A peer that does not start is left out and named in `failed`; NotReadyError when ours, the
    replica or the generator does not.
    """
    (folder / "generator").mkdir()
    generator = Generator(fleet, folder / "generator", plan.pins.generator)
    for stage in STAGES:
        measures = [one for one in plan.measures if one.work in stage.works]
        if not measures:
            continue
        place = folder / stage.label
        place.mkdir()
        site = Site(place, 0, 0, 0, stage.wire, make_certificate(place) if stage.wire in SECURE else None)
        replica, site = _start_replica(fleet, plan, site, stage)
        children, targets = _start_proxies(fleet, plan, site, stage, failed)
        for index in range(plan.rounds):
            for measure in measures:
                yield from _one_round(plan, generator, targets, measure, index)
        fleet.stop([*children, replica])


def _one_round(
    plan: Plan, generator: Generator, targets: dict[str, Target], measure: Measure, index: int
) -> Iterator[Slot]:
    for peer in plan.groups(measure):
        for proxy in order_of(measure, peer) if peer in targets else ():
            target = targets[proxy]
            command = measure.command(
                port=target.port, pids=target.pids, duration_s=plan.duration_s, rate_per_s=plan.rate_per_s
            )
            result = generator.measure(command)
            yield Slot(
                measure=measure.key,
                round=index,
                beside=peer,
                proxy=proxy,
                main_cpu_ns=sum(result.cpu_ns.get(pid, 0) for pid in target.main_pids),
                result=result,
                main_peak_bytes=sum(result.peak_bytes.get(pid, 0) for pid in target.main_pids),
            )


def _start_replica(fleet: Fleet, plan: Plan, stage_site: Site, stage: Stage) -> tuple[Child, Site]:
    """Start nginx with a canned answer when it is there and enough, else a replica of ours.

    Returned with the site on which the proxies build: the replica's port for them, and that of direct to listen on.
    """
    place = stage_site.folder / "replica"
    place.mkdir()
    nginx = Nginx()
    if stage.canned and stage.wire != "h2" and nginx.binary() is not None:
        port, tls_port = free_ports(2)
        site = replace(stage_site, folder=place, listen_port=port, admin_port=tls_port)
        child = fleet.start("replica", nginx.configure_replica(site), folder=place, cpus=plan.pins.replica)
        wait_ready(child, Readiness(port, "/health"))
        direct_port = tls_port if stage.wire == "tls" else port
        return child, replace(stage_site, listen_port=direct_port, replica_port=port)
    events, interval_ms = STREAM_EVENTS, EVENT_INTERVAL_MS
    if stage.canned and stage.wire == "h2":
        events, interval_ms = 1, 0.0
    command = [
        sys.executable, "-m", "loadtest.h2_replica" if stage.wire == "h2" else "loadtest.replica",
        "--events", str(events), "--interval-ms", str(interval_ms),
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(CHECKOUT)}
    child = fleet.start("replica", command, folder=place, cpus=plan.pins.replica, environment=environment)
    port = _announced_port(child)
    return child, replace(stage_site, listen_port=port, replica_port=port)


def _announced_port(child: Child) -> int:
    """Port in the JSON line that our replica writes once it listens."""
    until = time.monotonic() + 10
    while time.monotonic() < until and child.process.poll() is None:
        text = child.output.read_text()
        if text.endswith("\n"):
            return int(json.loads(text.splitlines()[0])["port"])
        time.sleep(0.02)
    raise NotReadyError(f"the replica did not start: {child.last_output()}")


def _start_proxies(
    fleet: Fleet, plan: Plan, stage_site: Site, stage: Stage, failed: list[str]
) -> tuple[list[Child], dict[str, Target]]:
    """Start ours and every peer that has a part in the stage, all in front of its replica."""
    works = {one.work for one in plan.measures} & set(stage.works)
    proxies: list[Peer] = [plan.ours, *(peer for peer in plan.peers if works & peer.works)]
    ports = free_ports(2 * len(proxies))
    started: list[tuple[Peer, Site, Child]] = []
    for peer in proxies:
        place = stage_site.folder / peer.name
        place.mkdir()
        site = replace(stage_site, folder=place, listen_port=ports.pop(), admin_port=ports.pop())
        command = peer.configure(site)
        child = fleet.start(
            peer.name, command, folder=place, cpus=plan.pins.proxy, environment=peer.environment()
        )
        started.append((peer, site, child))
    targets = {DIRECT: Target(stage_site.listen_port, [], [])}
    for peer, site, child in started:
        try:
            wait_ready(child, peer.readiness(site))
        except NotReadyError as failure:
            if peer.name == OURS:
                raise
            failed.append(str(failure))
            continue
        pids = process_tree(child.pid)
        targets[peer.name] = Target(site.listen_port, pids, _relaying(peer.name, pids))
    return [child for _, _, child in started], targets


def _relaying(name: str, pids: list[int]) -> list[int]:
    """Return the processes that relay: for ours the supervisor's children, if it has any."""
    return pids[1:] if name == OURS and len(pids) > 1 else pids
