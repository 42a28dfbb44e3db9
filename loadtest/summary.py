"""From slots to figures: medians per proxy, and ratios ours/peer taken within a group.

A ratio is made per round from two neighbouring measurements and only then summarised; medians of
absolute figures are for orientation. Added latency is the proxy's p50 less that of direct in the same
group. Imports `rounds`, `measures` and `percentiles`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from loadtest.percentiles import Distribution, Spread, ratio, spread
from loadtest.rounds import DIRECT, OURS, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loadtest.measures import Measure


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One proxy at one measure, over its rounds. Times in microseconds, rates in units per second.

    `latency` figures are of answers (unary), of round trips (WebSocket), of first events or messages (streams), of
    handshakes (TLS).
    `relay_cpu_us` leaves out our supervisor; for the peers it equals `cpu_us`.
    """

    proxy: str
    cpu_us: Spread | None
    relay_cpu_us: Spread | None
    p50_us: Spread | None
    p99_us: Spread | None
    added_p50_us: Spread | None
    gap_p99_us: Spread | None
    peak_mib: Spread | None
    rate_per_s: Spread | None
    errors: int
    detail: str


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """Ours over `peer` at one measure; below 1 is in our favour except for the rate."""

    peer: str
    cpu: Spread | None
    p50: Spread | None
    added_p50: Spread | None
    p99: Spread | None
    rate: Spread | None


class MeasureSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the report says about one measure."""

    key: str
    title: str
    unit: str
    figures: list[Figures]
    ratios: list[Ratios]


def latency_of(slot: Slot) -> Distribution | None:
    """Distribution that the latency figures of `slot` are about."""
    return slot.result.latency or slot.result.first_event


def p50_us(slot: Slot) -> float | None:
    """Median latency in microseconds."""
    found = latency_of(slot)
    return found.p50_us if found else None


def p99_us(slot: Slot) -> float | None:
    """99th percentile of latency in microseconds."""
    found = latency_of(slot)
    return found.p99_us if found else None


def summarise(measures: Iterable[Measure], slots: list[Slot]) -> list[MeasureSummary]:
    """Figures and ratios of every measure that has slots."""
    summaries: list[MeasureSummary] = []
    for measure in measures:
        own = [slot for slot in slots if slot.measure == measure.key]
        if not own:
            continue
        proxies = list(dict.fromkeys(slot.proxy for slot in own))
        peers = [name for name in proxies if name not in {DIRECT, OURS}]
        summaries.append(
            MeasureSummary(
                key=measure.key,
                title=measure.title,
                unit=measure.unit,
                figures=[_figures(name, own) for name in proxies],
                ratios=[_ratios(name, own) for name in peers],
            )
        )
    return summaries


def _figures(proxy: str, slots: list[Slot]) -> Figures:
    own = [slot for slot in slots if slot.proxy == proxy]
    base = {_group(slot): slot for slot in slots if slot.proxy == DIRECT}
    gaps = [slot.result.gap for slot in own]
    return Figures(
        proxy=proxy,
        cpu_us=spread(slot.cpu_us() for slot in own),
        relay_cpu_us=spread(slot.cpu_us(main_only=True) for slot in own),
        p50_us=spread(map(p50_us, own)),
        p99_us=spread(map(p99_us, own)),
        added_p50_us=None
        if proxy == DIRECT
        else spread(added_p50_us(slot, base.get(_group(slot))) for slot in own),
        gap_p99_us=spread(gap.p99_us if gap else None for gap in gaps),
        peak_mib=spread(slot.peak_mib() for slot in own),
        rate_per_s=spread(slot.rate() for slot in own),
        errors=sum(slot.result.errors for slot in own),
        detail=next((slot.result.detail for slot in own if slot.result.detail), ""),
    )


def _ratios(peer: str, slots: list[Slot]) -> Ratios:
    groups: dict[int, dict[str, Slot]] = {}
    for slot in slots:
        if slot.beside == peer:
            groups.setdefault(slot.round, {})[slot.proxy] = slot
    whole = [group for group in groups.values() if {OURS, peer} <= group.keys()]

    def over(figure: Callable[[Slot], float | None]) -> Spread | None:
        return spread(ratio(figure(group[OURS]), figure(group[peer])) for group in whole)

    return Ratios(
        peer=peer,
        cpu=over(Slot.cpu_us),
        p50=over(p50_us),
        added_p50=spread(
            ratio(added_p50_us(group[OURS], group.get(DIRECT)), added_p50_us(group[peer], group.get(DIRECT)))
            for group in whole
        ),
        p99=over(p99_us),
        rate=over(Slot.rate),
    )


def added_p50_us(slot: Slot, direct: Slot | None) -> float | None:
    """Median latency of `slot` less that of `direct` beside it, in microseconds."""
    if direct is None:
        return None
    mine, base = p50_us(slot), p50_us(direct)
    return mine - base if mine is not None and base is not None else None


def _group(slot: Slot) -> tuple[int, str]:
    return slot.round, slot.beside
