"""SGLang's continuous-batching loop, in virtual time.

Pure: no clock, no I/O, no asyncio. Time comes in as an argument, durations go out. `step(now)` ends the batch
that the previous call launched and launches the next one:

    waiting --admit--> prefill --last chunk--> decode --max_tokens or abort--> done
       ^                                          |
       +---------------- retract -----------------+

A prefill, if one can be formed, always goes before a decode and is never mixed with it. A request is in
exactly one place, and what it took from the KV pool is given back exactly once, in `_release`.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from inference_backend.kv_pool import KvPool, Page
from inference_backend.text import generated_text, token_count

if TYPE_CHECKING:
    from inference_backend.profiles import Profile

WAITING, PREFILL, DECODE, DONE = range(4)
_CLIP_NEW_TOKENS = 4_096  # SGLang reserves for no more than this much of a request's remaining output
_NEW_TOKEN_RATIO = (0.7, 0.1, 0.001)  # first, least, decay per decode step
_SPECULATION_COST = 1.3  # a verify step takes 1.1 to 1.5 times a plain decode step, draft included
_THROUGHPUT_STEPS = 40  # SGLang's --decode-log-interval


class Event(NamedTuple):
    """What one step did to one request: `tokens` more, and why it is over if it is."""

    request: Request
    tokens: int
    finish: str | None  # "length" | "stop" | "abort"


class Request:
    """One sequence.  `owner` belongs to whoever submitted it; the scheduler never looks at it."""

    __slots__ = (
        "aborted",
        "admitted_at",
        "arrived_at",
        "cached_tokens",
        "finish",
        "first_token_at",
        "generated",
        "kv",
        "max_tokens",
        "owner",
        "pages",
        "phase",
        "prompt",
        "prompt_tokens",
        "retracted",
        "rid",
        "salt",
        "start",
        "to_prefill",
    )

    def __init__(
        self,
        rid: str,
        prompt: bytes,
        max_tokens: int,
        *,
        start: int = 0,
        finish: str = "length",
        salt: int = 0,
    ) -> None:
        self.rid = rid
        self.prompt = prompt
        self.prompt_tokens = token_count(prompt)
        self.max_tokens = max_tokens
        self.start = start  # where in the ring of text its answer begins
        self.finish = finish  # the reason it ends for when max_tokens are out
        self.salt = salt
        self.owner: Any = None
        self.phase = WAITING
        self.aborted = False
        self.arrived_at = self.admitted_at = self.first_token_at = 0.0
        self.cached_tokens = self.generated = self.retracted = 0
        self.kv = 0  # tokens whose KV exists
        self.to_prefill = self.prompt_tokens
        self.pages: list[Page] = []

    def sequence(self, tokens: int) -> bytes:
        """Return the prompt and what was generated, up to `tokens` in all, as the prefix cache sees it."""
        generated = tokens - self.prompt_tokens
        return self.prompt + generated_text(self.start, 0, generated) if generated > 0 else self.prompt


class Totals:
    """Everything a scrape asks for that is not a state; only ever grows."""

    __slots__ = (
        "aborted",
        "cached_tokens",
        "decode_moments",
        "finished",
        "generation_tokens",
        "prefill_busy_us",
        "prefill_tokens",
        "prompt_tokens",
        "queue_full",
        "requests",
        "retracted",
        "verify_emitted",
        "verify_steps",
    )

    def __init__(self) -> None:
        self.requests = self.finished = self.aborted = self.retracted = self.queue_full = 0
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0
        self.prefill_tokens = self.prefill_busy_us = 0
        self.verify_steps = self.verify_emitted = 0
        # n, sum B, sum t_us, sum B^2, sum B*t_us, sum tokens: enough to regress t = a + b*B.
        self.decode_moments = [0, 0, 0, 0, 0, 0]


class Scheduler:
    """The loop.  One per engine."""

    __slots__ = (
        "_aborting",
        "_batch",
        "_chunked",
        "_kv_running",
        "_launched_at",
        "_prefilling",
        "_random",
        "_ratio",
        "_recent",
        "_survival",
        "kv",
        "max_queued",
        "max_running",
        "profile",
        "running",
        "totals",
        "waiting",
    )

    def __init__(
        self,
        profile: Profile,
        *,
        max_running: int | None = None,
        max_queued: int | None = None,
        kv_tokens: int | None = None,
        page_tokens: int = 64,
        acceptance: tuple[float, ...] = (),
        seed: int = 0,
    ) -> None:
        self.profile = profile
        self.max_running = max_running or profile.max_running
        self.max_queued = max_queued
        self.kv = KvPool(kv_tokens or profile.kv_tokens, page_tokens)
        self.waiting: deque[Request] = deque()
        self.running: dict[Request, None] = {}
        self.totals = Totals()
        self._chunked: Request | None = None  # admitted, its prompt not yet prefilled to the end
        self._prefilling: list[tuple[Request, int]] = []
        self._batch: list[Request] = []  # the decode batch in flight
        self._aborting: list[Request] = []
        self._kv_running = 0
        self._launched_at = 0.0
        self._ratio = _NEW_TOKEN_RATIO[0]
        self._random = Random(seed)
        self._survival: list[float] = []  # [k]: probability that a step accepts at least k + 1 drafts
        alive = 1.0
        for probability in acceptance:
            alive *= probability
            self._survival.append(alive)
        self._recent: deque[tuple[float, int]] = deque(maxlen=_THROUGHPUT_STEPS)

    @property
    def drafts(self) -> int:
        """Draft tokens per verify step; 0 without speculation."""
        return len(self._survival)

    def submit(self, request: Request, now: float) -> bool:
        """Queue a request that `fits`.  False, and nothing kept, if the queue is full."""
        if self.max_queued is not None and len(self.waiting) >= self.max_queued:
            self.totals.queue_full += 1
            return False
        assert self.fits(request)
        request.arrived_at = now
        self.totals.requests += 1
        self.waiting.append(request)
        return True

    def fits(self, request: Request) -> bool:
        """Whether the request can ever run to its end, alone."""
        return request.prompt_tokens + request.max_tokens <= self.kv.capacity

    def abort(self, request: Request) -> None:
        """End the request at the next step, which emits its "abort"; nothing happens if it is done."""
        if request.phase != DONE and not request.aborted:
            request.aborted = True
            self._aborting.append(request)

    def step(self, now: float) -> tuple[float | None, list[Event]]:
        """End the batch in flight, launch the next: (its seconds, or None when idle; what ended at `now`)."""
        events: list[Event] = []
        if self._prefilling:
            self._end_prefill(now, events)
        elif self._batch:
            self._end_decode(now, events)
        if self._aborting:
            for request in self._aborting:
                if request.phase != DONE:
                    self._release(request)
                    self.totals.aborted += 1
                    events.append(Event(request, 0, "abort"))
            self._aborting.clear()
        return self._launch(now), events

    def loads(self) -> dict[str, Any]:
        """Compute what /v1/loads calls core."""
        waiting_uncached = sum(r.to_prefill - r.kv for r in self.waiting)
        if self._chunked is not None:
            waiting_uncached += self._chunked.to_prefill - self._chunked.kv
        running = len(self.running) + (self._chunked is not None)
        used = self.kv.used
        totals = self.totals
        return {
            "num_running_reqs": running,
            "num_waiting_reqs": len(self.waiting),
            "num_waiting_uncached_tokens": waiting_uncached,
            "num_used_tokens": used,
            "num_total_tokens": used + sum(r.to_prefill for r in self.waiting),
            "num_active_tokens": used,
            "num_prealloc_ready_tokens": 0,
            "max_total_num_tokens": self.kv.capacity,
            "max_running_requests": self.max_running,
            "token_usage": round(used / self.kv.capacity, 4),
            "gen_throughput": round(self._throughput(), 2),
            "cache_hit_rate": round(totals.cached_tokens / max(totals.prompt_tokens, 1), 4),
            "utilization": round(running / self.max_running, 4),
            "total_prefill_uncached_tokens": totals.prefill_tokens,
            "total_prefill_busy_us": totals.prefill_busy_us,
            "decode_moments": [float(moment) for moment in totals.decode_moments],
        }

    # -- the batch in flight ends

    def _end_prefill(self, now: float, events: list[Event]) -> None:
        totals = self.totals
        totals.prefill_busy_us += round((now - self._launched_at) * 1e6)
        for request, tokens in self._prefilling:
            request.kv += tokens
            totals.prefill_tokens += tokens
            if request.aborted or request.kv < request.to_prefill:
                continue
            self.kv.extend(request.pages, request.sequence(request.kv), request.salt)
            if not request.generated:
                request.first_token_at = now
            request.phase = DECODE
            self.running[request] = None
            self._kv_running += request.kv
            self._emit(request, 1, events)
        self._prefilling = []

    def _end_decode(self, now: float, events: list[Event]) -> None:
        batch = self._batch
        emitted = 0
        for request in batch:
            room = min(
                1 + len(self._survival), request.max_tokens - request.generated
            )  # what the launch took
            if request.aborted:
                self.kv.private -= room
                continue
            tokens = min(1 + self._accepted(), room)
            self.kv.private -= room - tokens
            emitted += tokens
            request.kv += tokens
            self._kv_running += tokens
            self._emit(request, tokens, events)
        size = len(batch)
        busy_us = round((now - self._launched_at) * 1e6)
        for index, more in enumerate((1, size, busy_us, size * size, size * busy_us, emitted)):
            self.totals.decode_moments[index] += more
        if self._survival:
            self.totals.verify_steps += size
            self.totals.verify_emitted += emitted
        self._recent.append((now, emitted))
        self._ratio = max(self._ratio - _NEW_TOKEN_RATIO[2], _NEW_TOKEN_RATIO[1])
        self._batch = []

    def _emit(self, request: Request, tokens: int, events: list[Event]) -> None:
        request.generated += tokens
        self.totals.generation_tokens += tokens
        if request.generated < request.max_tokens:
            events.append(Event(request, tokens, None))
            return
        self._release(request)
        self.totals.finished += 1
        events.append(Event(request, tokens, request.finish))

    def _accepted(self) -> int:
        if not self._survival:
            return 0
        draw = self._random.random()
        accepted = 0
        for alive in self._survival:
            if draw >= alive:
                break
            accepted += 1
        return accepted

    # -- the next batch is launched

    def _launch(self, now: float) -> float | None:
        self._launched_at = now
        if self._chunked is not None or self.waiting:
            parts = self._form_prefill(now)
            if parts:
                return self.profile.prefill_s(parts)
        if not self.running:
            return None
        self._make_room()
        self._batch = list(self.running)
        duration = self.profile.decode_s(len(self._batch), self._kv_running)
        return duration * _SPECULATION_COST if self._survival else duration

    def _form_prefill(self, now: float) -> list[tuple[int, int]]:
        """Fill a prefill with up to a chunk of uncached tokens, first come first served."""
        budget = self.profile.chunk_tokens
        parts: list[tuple[int, int]] = []
        request = self._chunked
        self._chunked = None
        slots = self.max_running - len(self.running)
        while budget > 0:
            if request is None:
                if (
                    not self.waiting
                    or len(parts) >= slots
                    or not self._admit(self.waiting[0], now, bool(parts))
                ):
                    break
                request = self.waiting.popleft()
            tokens = min(request.to_prefill - request.kv, budget)
            parts.append((tokens, request.kv))
            self._prefilling.append((request, tokens))
            budget -= tokens
            if request.kv + tokens < request.to_prefill:
                self._chunked = request
                break
            request = None
        return parts

    def _admit(self, request: Request, now: float, has_others: bool) -> bool:
        """Lock the cached prefix of the head of the queue and take KV for the rest of its prompt."""
        sequence = request.sequence(request.to_prefill)
        # The last token is always computed: it is what the first new one comes from.
        pages = self.kv.lock_prefix(sequence, request.salt, request.to_prefill - 1)
        cached = len(pages) * self.kv.page_tokens
        uncached = request.to_prefill - cached
        if self.running or has_others:
            others = chain(self.running, (other for other, _ in self._prefilling))
            reserve = sum(
                min(r.max_tokens - r.generated, _CLIP_NEW_TOKENS) for r in chain((request,), others)
            )
            if uncached + self._ratio * reserve > self.kv.free + self.kv.evictable:
                self.kv.unlock(pages)
                return False
        if not self.kv.take(uncached):
            self.kv.unlock(pages)
            return False
        request.pages = pages
        request.phase = PREFILL
        request.kv = cached
        if not request.retracted:
            request.admitted_at = now
            request.cached_tokens = cached
            self.totals.prompt_tokens += request.prompt_tokens
            self.totals.cached_tokens += cached
        return True

    def _make_room(self) -> None:
        """Take KV for one decode step, retracting the requests with the least output until it fits."""
        burst = 1 + len(self._survival)
        while not self.kv.take(sum(min(burst, r.max_tokens - r.generated) for r in self.running)):
            victim = min(self.running, key=lambda r: (r.generated, -r.arrived_at))
            self._release(victim)
            victim.phase = WAITING
            victim.retracted += 1
            victim.to_prefill = victim.prompt_tokens + victim.generated
            self.waiting.appendleft(victim)
            self.totals.retracted += 1
            self._ratio = _NEW_TOKEN_RATIO[0]

    def _release(self, request: Request) -> None:
        """Give back what the request holds of the KV pool and its place, whichever it is."""
        kv = self.kv
        if request.phase == WAITING:
            self.waiting.remove(request)
        elif request.phase == PREFILL:
            kv.private -= request.to_prefill - len(request.pages) * kv.page_tokens
            if self._chunked is request:
                self._chunked = None
        else:
            del self.running[request]
            self._kv_running -= request.kv
            kv.extend(request.pages, request.sequence(request.kv), request.salt)
            kv.private -= request.kv - len(request.pages) * kv.page_tokens
        kv.unlock(request.pages)
        request.pages = []
        request.kv = 0
        request.phase = DONE

    def _throughput(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        elapsed = self._recent[-1][0] - self._recent[0][0]
        return sum(tokens for _, tokens in self._recent) / elapsed if elapsed > 0 else 0.0
