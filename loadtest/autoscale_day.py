"""`python -m loadtest.autoscale_day`: a day of bursty traffic through the autoscaler's own policy, in virtual time.

Arrivals are Poisson with a seed: a curve over the day that is nothing at night, and bursts of a few minutes on it.
A request takes a while (exponential), a replica has room for some at a time, one that is started serves after a
cold start; what finds no room is refused, as the router does, and some of those come again. The decisions are those
of `router.autoscale.policy`, once a second. Prints what it cost and draws replicas against demand. Pure but for the
picture; the same seed gives the same day.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from time import perf_counter

import click
from rich.console import Console
from rich.table import Table

from loadtest.plot import plot_day
from router.autoscale.policy import Decider, Observation
from router.routing.spec import ScalingSpec

DAY_S = 86_400
NIGHT = (1.0, 6.0)  # hours in which nobody comes
PEAK_HOUR = 15.0
BURST_S = (60.0, 600.0)
RETRY_SHARE = 0.5  # of refused requests, after
RETRY_S = 2.0
PICTURE = "loadtest/reports/autoscale-day.png"


@dataclass(frozen=True, slots=True)
class Day:
    """What comes, and what it meets."""

    scaling: ScalingSpec
    seed: int = 1
    peak_per_s: float = 6.0
    bursts: int = 24
    burst_factor: float = 4.0
    service_s: float = 6.0
    room: int = 16
    """Requests at a time on one replica; more are refused."""
    cold_start_s: float = 45.0
    drain_s: float = 10.0


@dataclass(slots=True)
class Outcome:
    """One value each second, and sums."""

    in_flight: list[int] = field(default_factory=list)
    """As the autoscaler saw it."""
    wanting: list[int] = field(default_factory=list)
    """Requests under way, and those refused that will come again."""
    need: list[int] = field(default_factory=list)
    """Replicas that those would take, at the target."""
    ready: list[int] = field(default_factory=list)
    current: list[int] = field(default_factory=list)
    desired: list[int] = field(default_factory=list)
    arrived: int = 0
    refused: int = 0
    served: int = 0
    changes: int = 0
    ups: int = 0
    starts: int = 0

    @property
    def short_s(self) -> int:
        """Seconds in which there was not enough for everybody to be within the target."""
        return sum(ready < need for ready, need in zip(self.ready, self.need, strict=True))

    @property
    def replica_hours(self) -> float:
        """What was paid for: also what starts and what drains."""
        return sum(self.current) / 3_600

    @property
    def ideal_hours(self) -> float:
        """What an oracle without cold starts would have needed."""
        return sum(self.need) / 3_600


def rate_per_s(day: Day, bursts: list[tuple[float, float]], at_s: float) -> float:
    """Return the arrivals expected in a second."""
    hour = at_s / 3_600
    if NIGHT[0] <= hour < NIGHT[1]:
        return 0.0
    curve = 0.1 + 0.9 * max(0.0, math.cos((hour - PEAK_HOUR) / 24 * 2 * math.pi)) ** 2
    is_burst = any(begin <= at_s < end for begin, end in bursts)
    return day.peak_per_s * curve * (day.burst_factor if is_burst else 1.0)


def poisson(chance: random.Random, mean: float) -> int:
    """Return how many came (Knuth; the means here are small)."""
    limit, product, count = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        count += 1
    return count


class Replicas:
    """The pool: what is ready, what comes, what drains."""

    def __init__(self, day: Day) -> None:
        self._day = day
        self.ready = 0
        self._coming: list[int] = []
        self._draining: list[float] = []

    @property
    def pending(self) -> int:
        """Replicas on their way."""
        return len(self._coming)

    @property
    def paid(self) -> int:
        """All that there are."""
        return self.ready + len(self._coming) + len(self._draining)

    def turn(self, now: int) -> None:
        """Let what is due come up, and what has drained go."""
        while self._coming and self._coming[0] <= now:
            heappop(self._coming)
            self.ready += 1
        self._draining = [end for end in self._draining if end > now]

    def change(self, desired: int, now: int) -> int:
        """Start what is missing, or stop one, as the autoscaler does; return how many were started."""
        missing = desired - self.ready - self.pending
        for _ in range(missing):
            heappush(self._coming, now + round(self._day.cold_start_s))
        if missing < 0 and self.ready > desired:
            self.ready -= 1
            self._draining.append(now + self._day.drain_s)
        return max(0, missing)


def simulate(day: Day) -> Outcome:
    """Live one day."""
    chance = random.Random(day.seed)
    starts = [chance.uniform(NIGHT[1] * 3_600, DAY_S) for _ in range(day.bursts)]
    bursts = [(start, start + chance.uniform(*BURST_S)) for start in starts]
    decider = Decider(day.scaling)
    pool, out = Replicas(day), Outcome()
    ends: list[float] = []  # of requests under way
    again: list[tuple[float, int]] = []  # refused requests that come back
    unserved = arrivals = last_desired = 0
    for now in range(DAY_S):
        pool.turn(now)
        while ends and ends[0] <= now:
            heappop(ends)
            out.served += 1
        seen = Observation(len(ends), 0, arrivals, unserved, pool.ready, pool.pending)
        desired = decider.step(seen, float(now)).desired
        out.starts += pool.change(desired, now)
        out.changes += desired != last_desired
        out.ups += desired > last_desired
        last_desired = desired
        fresh = poisson(chance, rate_per_s(day, bursts, now))
        out.arrived += fresh
        back = 0
        while again and again[0][0] <= now:
            back += heappop(again)[1]
        arrivals, unserved = fresh + back, 0
        for _ in range(arrivals):
            if len(ends) < pool.ready * day.room:
                heappush(ends, now + chance.expovariate(1 / day.service_s))
            elif chance.random() < RETRY_SHARE:
                unserved += 1
                heappush(again, (now + RETRY_S, 1))
            else:
                unserved += 1
                out.refused += 1
        wanting = len(ends) + sum(count for _, count in again)
        out.in_flight.append(seen.in_flight)
        out.wanting.append(wanting)
        out.need.append(math.ceil(wanting / day.scaling.target_concurrency))
        out.ready.append(pool.ready)
        out.current.append(pool.paid)
        out.desired.append(desired)
    return out


def rows_of(out: Outcome) -> list[tuple[str, str]]:
    """Return what is printed."""
    return [
        ("requests", f"{out.arrived:,}"),
        ("refused for good", f"{out.refused:,} ({out.refused / max(1, out.arrived):.2%})"),
        ("seconds short of the target", f"{out.short_s:,} ({out.short_s / DAY_S:.2%})"),
        ("replica-hours", f"{out.replica_hours:.1f}"),
        ("… of an oracle without cold starts", f"{out.ideal_hours:.1f}"),
        ("… ratio", f"{out.replica_hours / out.ideal_hours:.2f}" if out.ideal_hours else "-"),
        ("most replicas at a time", f"{max(out.current)}"),
        ("scale changes", f"{out.changes} ({out.ups} up)"),
        ("replicas started", f"{out.starts}"),
    ]


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--seed", default=1, help="Of arrivals, bursts and service times.")
@click.option("--peak-per-s", default=6.0, type=click.FloatRange(0.01, 50.0), help="Arrivals at the busiest hour.")
@click.option("--bursts", default=24, type=click.IntRange(0, 500), help="Bursts of one to ten minutes, by day.")
@click.option("--burst-factor", default=4.0, type=click.FloatRange(1.0, 20.0), help="What a burst multiplies by.")
@click.option("--service-s", default=6.0, type=click.FloatRange(0.01, 600.0), help="Mean time of a request.")
@click.option("--room", default=16, type=click.IntRange(1), help="Requests at a time on one replica.")
@click.option("--cold-start-s", default=45.0, type=click.FloatRange(0.0, 3_600.0), help="From start to READY.")
@click.option("--target", default=8.0, type=click.FloatRange(0.1), help="scaling.target_concurrency.")
@click.option("--min", "minimum", default=0, type=click.IntRange(0), help="scaling.min_replicas.")
@click.option("--max", "maximum", default=40, type=click.IntRange(1), help="scaling.max_replicas.")
@click.option("--buffer", default=0, type=click.IntRange(0), help="scaling.buffer_replicas.")
@click.option("--up-window-s", default=0.0, type=click.FloatRange(0.0), help="scaling.scaleup_window_s.")
@click.option("--down-window-s", default=300.0, type=click.FloatRange(0.0), help="scaling.scaledown_window_s.")
@click.option("--output", default=PICTURE, type=click.Path(dir_okay=False, path_type=Path), help="The picture.")
def main(
    seed: int, peak_per_s: float, bursts: int, burst_factor: float, service_s: float, room: int,
    cold_start_s: float, target: float, minimum: int, maximum: int, buffer: int, up_window_s: float,
    down_window_s: float, output: Path,
) -> None:  # fmt: skip
    """Live a day of bursty traffic in virtual time, and draw replicas against demand."""
    scaling = ScalingSpec(
        target, minimum, maximum, buffer, scaleup_window_s=up_window_s, scaledown_window_s=down_window_s
    )
    day = Day(scaling, seed, peak_per_s, bursts, burst_factor, service_s, room, cold_start_s)
    began_s = perf_counter()
    out = simulate(day)
    took_s = perf_counter() - began_s
    table = Table(title=f"a day in {took_s:.1f} s, seed {seed}", show_header=False, box=None)
    for row in rows_of(out):
        table.add_row(*row)
    console = Console()
    console.print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_day(out.need, out.ready, out.current, output)
    console.print(f"drawn in {output}", highlight=False)


if __name__ == "__main__":
    main(prog_name="python -m loadtest.autoscale_day")
