"""How many replicas an endpoint is to have: numbers and the time in, a number out. No clock, no I/O.

    need     = in flight + waiting + what was refused, as concurrency (refusals a second x seconds a request takes)
    wanted   = ceil(need / target), what there is if need is within `tolerance` of that; + buffer if there is need;
               as many at least as have room for the open sessions and those that wait for one
    desired  = wanted, if that is more: the least of the last `scaleup_window_s`; one at once where there is none
               wanted, if that is less: the most of the last `scaledown_window_s`, and nothing is on its way
    bounds   min <= desired <= max, but never fewer than hold live sessions

The windows are those of Kubernetes' HorizontalPodAutoscaler: upwards the smallest recommendation counts, since with
the largest a window would delay nothing; downwards the largest. A decider that starts anew, or could not look for a
while, has seen nothing: it takes nothing down before a whole window has passed. Nor does it while a router that had
requests is silent: that it does not tell its demand does not mean that it has none.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.routing.spec import ScalingSpec

SERVICE_S = 1.0  # what a request takes, before any has been seen to end
MAX_SERVICE_S = 600.0
MEMORY_S = 60.0  # over which it is averaged
GAP_S = 10.0  # without a look: what was seen before it does not tell that nobody came meanwhile
REFUSED_REPLICAS = 4
"""Refusals ask for so many replicas at once, or for twice what is in flight: clients that try again each second are
counted each second. (HorizontalPodAutoscaler grows by four pods, or to twice as many, in one step.)"""
_EPSILON = 1e-9  # 21 / 0.7 is 30.000000000000004


@dataclass(frozen=True, slots=True)
class Observation:
    """An endpoint at one moment; `arrivals` and `unserved` are since the last one."""

    in_flight: int = 0
    waiting: int = 0
    arrivals: int = 0
    unserved: int = 0
    ready: int = 0
    pending: int = 0
    """Replicas on their way."""
    held: int = 0
    """Replicas with live sessions."""
    is_blind: bool = False
    """A router that had requests has told nothing for a while."""
    sessions: int = 0
    room: int = 0
    """Sessions that one replica may have; 0 where there are none."""

    @property
    def current(self) -> int:
        """Replicas there are or will be."""
        return self.ready + self.pending


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas, what decided it, and the concurrency that asks for them."""

    desired: int
    reason: str
    need: float


class Window:
    """The most (`sign` 1) or the least (-1) that was put in within some seconds; keeps only what may yet count."""

    __slots__ = ("_kept", "_sign")

    def __init__(self, sign: int) -> None:
        self._sign = sign
        self._kept: deque[tuple[float, int]] = deque()

    def put(self, value: int, now_s: float, length_s: float) -> int:
        """Put `value` in and return the extreme of the last `length_s`."""
        kept, sign = self._kept, self._sign
        while kept and sign * kept[-1][1] <= sign * value:
            kept.pop()
        kept.append((now_s, value))
        while kept[0][0] < now_s - length_s:
            kept.popleft()
        return kept[0][1]


class Decider:
    """One endpoint's. `spec` may be replaced at any time."""

    __slots__ = ("_down", "_ended_per_s", "_in_flight", "_last", "_last_s", "_up", "spec")

    def __init__(self, spec: ScalingSpec) -> None:
        self.spec = spec
        self._up = Window(-1)
        self._down = Window(1)
        self._last: Observation | None = None
        self._last_s = 0.0
        self._in_flight = 0.0  # averages, of which the time a request takes comes
        self._ended_per_s = 0.0

    def step(self, seen: Observation, now_s: float) -> Decision:
        """Decide on what is seen now; `now_s` never goes back."""
        spec, last = self.spec, self._last
        if last is None or now_s - self._last_s > GAP_S:
            self._down.put(seen.current, now_s, spec.scaledown_window_s)
        elif seen.ready > last.ready:  # what has just come up gets a window of its own
            self._down.put(seen.ready, now_s, spec.scaledown_window_s)
        need = self._need(seen, now_s)
        wanted, reason = self._wanted(seen, need)
        most = self._down.put(wanted, now_s, spec.scaledown_window_s)
        least = self._up.put(wanted, now_s, spec.scaleup_window_s)
        self._last, self._last_s = seen, now_s
        desired = current = seen.current
        if wanted > current:
            desired = max(current, least)
            if current == 0 and desired == 0:
                desired, reason = 1, "first request"
            elif desired < wanted:
                reason = "scale-up window"
        elif wanted < current:
            desired = min(current, most)
            if desired > wanted:
                reason = "scale-down window"
            if seen.pending and desired < current:
                desired, reason = current, "replicas are on their way"
            elif seen.is_blind and desired < current:
                desired, reason = current, "a router is silent"
        if desired > spec.max_replicas:
            desired, reason = spec.max_replicas, "max_replicas"
        if desired < spec.min_replicas:
            desired, reason = spec.min_replicas, "min_replicas"
        if desired < seen.held:
            desired, reason = seen.held, "live sessions"
        return Decision(desired, reason, need)

    def _need(self, seen: Observation, now_s: float) -> float:
        """Return the concurrency that is asked for."""
        need = float(seen.in_flight + seen.waiting)
        last, step_s = self._last, now_s - self._last_s
        if last is None or step_s <= 0:
            return need
        ended = max(0, seen.arrivals - seen.unserved - (seen.in_flight - last.in_flight))
        share = 1 - math.exp(-step_s / MEMORY_S)
        self._in_flight += share * (seen.in_flight - self._in_flight)
        self._ended_per_s += share * (ended / step_s - self._ended_per_s)
        if not seen.unserved:
            return need
        # Little's law: how long one takes is how many there are for each that ends in a second.
        is_known = self._ended_per_s > 0 and self._in_flight > 0
        service_s = min(self._in_flight / self._ended_per_s, MAX_SERVICE_S) if is_known else SERVICE_S
        refused = service_s * seen.unserved / step_s
        return need + min(refused, max(need, REFUSED_REPLICAS * self.spec.target_concurrency))

    def _wanted(self, seen: Observation, need: float) -> tuple[int, str]:
        """Return how many replicas there should be by this moment alone, without bounds."""
        spec = self.spec
        places = math.ceil((seen.sessions + seen.waiting) / seen.room) if seen.room else 0
        if need <= 0:
            return (places, "sessions") if places else (0, "no demand")
        ratio = need / spec.target_concurrency
        wanted, reason = max(1, math.ceil(ratio - _EPSILON)), "demand"
        busy = seen.current - spec.buffer_replicas
        if busy > 0 and abs(ratio / busy - 1) <= spec.tolerance + _EPSILON:
            wanted, reason = busy, "within tolerance"
        if places > wanted:
            wanted, reason = places, "sessions"
        return wanted + spec.buffer_replicas, reason
