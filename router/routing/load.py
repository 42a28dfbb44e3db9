"""A replica's live state and the lease on it: in-flight counts, latency, penalty.

`Replica` outlives tables: a swap keeps the object whose id stayed. In-flight counts are shared by the
workers of a host through `LoadBoard`, a matrix in shared memory in which each worker writes only its own
row, so that no lock is needed. A lease is released exactly once, on cancel too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from router.counters import EndpointCounters
    from router.routing.spec import ReplicaSpec
    from router.routing.table import Endpoint

BOARD_SLOTS = 131_072  # replicas of one table …
ENDPOINT_SLOTS = 16_384  # … and endpoints, whose cells lie behind theirs; one beyond that counts for itself …
BOARD_CELLS = BOARD_SLOTS + ENDPOINT_SLOTS  # … in shared memory, 1.1 MiB a worker
NO_SLOT: Final = -1
NEVER_S: Final = -1e9
LATENCY_DECAY_S: Final = 10.0  # time constant of the peak EWMA, as in linkerd's load
PENALTY_DECAY_S: Final = 1.0
PENALTY_CAP: Final = 64.0
AVOID_FLOOR_S = 1.0  # for which a replica that failed or refused is passed over by routing keys; doubles …
AVOID_CEILING_S = 30.0  # … up to this
SCHEMES = ("http", "h2c", "https")


# How a lease ended, as far as the replica's standing goes. Plain integers: see `stream`.
OUTCOME_OK: Final = 0
OUTCOME_FAILED: Final = 1  # connect failure, broken response, 502 or 504 of the replica's own
OUTCOME_BACKPRESSURE: Final = 2  # 429 or 503 of the replica's own: not a failure, but not to attract traffic
OUTCOME_CANCELLED: Final = 3  # the client's doing: says nothing of the replica


class LoadBoard:
    """In-flight counts by worker and slot, as int64 cells of a shared buffer."""

    __slots__ = ("_cells", "_own", "_slots", "_workers")

    def __init__(self, buffer: memoryview, worker: int, workers: int, slots: int) -> None:
        self._cells = buffer.cast("q")
        self._own = worker * slots
        self._slots = slots
        self._workers = workers

    def publish(self, slot: int, in_flight: int) -> None:
        """Tell the other workers this worker's count for `slot`."""
        self._cells[self._own + slot] = in_flight

    def others(self, slot: int) -> int:
        """Return the sum of the other workers' counts for `slot`."""
        cells = self._cells
        total = 0
        for base in range(slot, self._workers * self._slots, self._slots):
            total += cells[base]
        return total - cells[self._own + slot]

    def clear_row(self, worker: int) -> None:
        """Forget what a dead worker had in flight."""
        start = worker * self._slots
        for cell in range(start, start + self._slots):
            if self._cells[cell]:
                self._cells[cell] = 0

    def close(self) -> None:
        """Give the buffer back."""
        self._cells.release()


class Replica:
    """One inference server as this worker knows it. Times are monotonic seconds."""

    __slots__ = (
        "_penalty",
        "_penalty_at_s",
        "address",
        "avoid_s",
        "avoid_until_s",
        "backpressured",
        "board",
        "ejected_until_s",
        "ejections",
        "engine_load",
        "engine_load_at_s",
        "engine_sent",
        "failures",
        "failures_in_a_row",
        "generation",
        "has_left",
        "host",
        "id",
        "in_flight",
        "is_healthy",
        "key",
        "lanes",
        "latency_at_s",
        "latency_s",
        "owner",
        "port",
        "rank",
        "region",
        "requests",
        "scheme",
        "slot",
        "spec_weight",
        "state",
        "warm_from_s",
        "weight",
    )

    def __init__(self, spec: ReplicaSpec, board: LoadBoard | None = None) -> None:
        self.id = spec.id
        self.key = spec.id.encode()
        self.address = spec.address
        self.scheme, self.host, self.port = split_address(spec.address)
        self.board = board
        self.owner: Endpoint | None = None  # of the newest table: who is told of failures
        self.slot = spec.slot
        self.state = spec.state
        self.spec_weight = spec.weight
        self.weight = spec.weight
        self.region = spec.region
        self.generation = spec.generation
        self.lanes = spec.lanes
        self.is_healthy = True
        self.rank = -1  # of its tier in the newest picker of its endpoint; negative: in none
        self.avoid_until_s = 0.0  # by routing keys, since it failed or refused
        self.avoid_s = 0.0
        self.has_left = False  # the table: nothing of it is kept any more
        self.in_flight = 0
        self.requests = 0
        self.failures = 0
        self.failures_in_a_row = 0
        self.backpressured = 0
        self.ejections = 0
        self.ejected_until_s = 0.0
        self.warm_from_s = 0.0
        self.latency_s = 0.0
        self.latency_at_s = 0.0
        self.engine_load = 0.0  # as it said of itself, in requests …
        self.engine_load_at_s = NEVER_S  # … at that time …
        self.engine_sent = 0  # … when this host had so many in flight there
        self._penalty = 0.0
        self._penalty_at_s = 0.0

    def update(self, spec: ReplicaSpec) -> None:
        """Take over what a newer table says of the same replica at the same address."""
        self.state = spec.state
        self.region = spec.region
        self.generation = spec.generation
        self.lanes = spec.lanes
        self.spec_weight = spec.weight
        self.weight = spec.weight
        if spec.slot != self.slot and self.board is not None:
            self.board.publish(self.slot, 0)
            self.slot = spec.slot
            self.board.publish(self.slot, self.in_flight)

    def leave(self) -> None:
        """Leave the table, and give the cell up: another may be given it."""
        self.has_left = True
        self.owner = None
        self.rank = -1  # whoever still holds a picker or a ring with it passes it over
        if self.board is not None:
            self.board.publish(self.slot, 0)
            self.board = None

    def total_in_flight(self) -> int:
        """Return requests in flight on it from all workers of this host."""
        board = self.board
        return self.in_flight if board is None else self.in_flight + board.others(self.slot)

    def load(self, now: float) -> float:
        """Return what policies compare: (in flight + 1 + penalty) / weight.

        The penalty rises by one with each 429 or 503 and halves every 0.7 s, so that a replica that
        fails fast, and therefore never has anything in flight, does not draw all the traffic.
        """
        in_flight = self.in_flight if self.board is None else self.in_flight + self.board.others(self.slot)
        if self._penalty:
            return (in_flight + 1 + self._decayed_penalty(now)) / self.weight
        return (in_flight + 1) / self.weight

    def note_engine_load(self, load: float, now: float) -> None:
        """Take what the engine said."""
        self.engine_load = load
        self.engine_load_at_s = now
        self.engine_sent = self.total_in_flight()

    def expected_engine_load(self, now: float) -> float:
        """Return what the engine said, with what was sent to it since, by weight as `load` is."""
        since = max(0, self.total_in_flight() - self.engine_sent)
        return (self.engine_load + since + 1 + self._decayed_penalty(now)) / self.weight

    def penalise(self, now: float) -> None:
        """Count one fast refusal."""
        self._penalty = min(self._decayed_penalty(now) + 1.0, PENALTY_CAP)
        self._penalty_at_s = now

    def avoid(self, now: float) -> None:
        """Keep routing keys away for a while, twice as long as the last time if nothing went well since.

        What was under way together with the first failure says the same once more, and does not count again.
        """
        if self.avoid_until_s <= now:
            self.avoid_s = min(max(AVOID_FLOOR_S, self.avoid_s * 2), AVOID_CEILING_S)
            self.avoid_until_s = now + self.avoid_s

    def observe_latency(self, seconds: float, now: float) -> None:
        """Feed the peak EWMA: a slower sample counts at once, faster ones decay it in (10 s)."""
        if seconds >= self.latency_s:
            self.latency_s = seconds
        else:
            keep = math.exp((self.latency_at_s - now) / LATENCY_DECAY_S)
            self.latency_s = self.latency_s * keep + seconds * (1.0 - keep)
        self.latency_at_s = now

    def expected_latency(self, now: float) -> float:
        """Return the latency estimate in seconds, fading while nothing is observed.

        Else a replica that was slow once would not be tried again as long as others are idle too.
        """
        return self.latency_s * LATENCY_DECAY_S / (LATENCY_DECAY_S + now - self.latency_at_s)

    def _decayed_penalty(self, now: float) -> float:
        if not self._penalty:
            return 0.0
        left = self._penalty * math.exp((self._penalty_at_s - now) / PENALTY_DECAY_S)
        if left < 0.01:
            self._penalty = 0.0
            return 0.0
        return left


class EndpointLoad:
    """How much of one endpoint is in flight on this host; shared by the versions of the endpoint."""

    __slots__ = ("_board", "_counters", "_slot", "is_shared")

    def __init__(self, counters: EndpointCounters, board: LoadBoard | None) -> None:
        self.is_shared = board is not None  # whether there is anybody to publish to
        self._counters = counters
        self._board = board
        self._slot = NO_SLOT

    def move(self, slot: int) -> None:
        """Take another cell of the board; NO_SLOT gives it up."""
        if slot == self._slot or self._board is None:
            return
        if self._slot != NO_SLOT:
            self._board.publish(self._slot, 0)
        self._slot = slot
        self.publish()

    def publish(self) -> None:
        """Tell the other workers; to be called whenever the count has changed."""
        if self._slot != NO_SLOT and self._board is not None:
            self._board.publish(self._slot, self._counters.in_flight)

    def total(self) -> int:
        """Return requests in flight on it from all workers of this host."""
        if self._slot == NO_SLOT or self._board is None:
            return self._counters.in_flight
        return self._counters.in_flight + self._board.others(self._slot)


class Lease:
    """The right to one request on one replica; counts as in flight until released."""

    __slots__ = ("_released", "_taken_s", "replica")

    def __init__(self, replica: Replica, now: float) -> None:
        self.replica = replica
        self._taken_s = now
        self._released = False
        replica.requests += 1
        replica.in_flight += 1
        if replica.board is not None:
            replica.board.publish(replica.slot, replica.in_flight)

    def first_byte(self, now: float) -> None:
        """Note that the response began; feeds the latency estimate."""
        self.replica.observe_latency(now - self._taken_s, now)

    def release(self, outcome: int, now: float) -> None:
        """Give the lease back. A second call is a bug."""
        assert not self._released, "a lease is released exactly once"
        self._released = True
        replica = self.replica
        replica.in_flight -= 1
        if replica.board is not None:
            replica.board.publish(replica.slot, replica.in_flight)
        if outcome == OUTCOME_OK:
            replica.failures_in_a_row = 0
            replica.avoid_s = 0.0
        elif outcome != OUTCOME_CANCELLED and replica.owner is not None:
            replica.owner.note(replica, outcome, now)


def split_address(address: str) -> tuple[str, str, int]:
    """Split `http://host:port` into scheme, host and port; ValueError says what is wrong.

    `http` is HTTP/1.1 in the clear, `h2c` HTTP/2 in the clear, `https` whichever of the two TLS agrees on.
    IPv6 hosts stand in brackets. A path, a user or a missing port is refused: an address names a server.
    """
    scheme, mark, rest = address.partition("://")
    if not mark:
        raise ValueError(f"address {address!r} needs a scheme, as in http://127.0.0.1:30000")
    if scheme not in SCHEMES:
        raise ValueError(f"address {address!r} has scheme {scheme!r}; it is http, h2c or https")
    rest = rest.removesuffix("/")
    if rest.startswith("["):
        host, bracket, port_text = rest[1:].partition("]")
        port_text = port_text[1:] if bracket and port_text.startswith(":") else ""
    else:
        host, _, port_text = rest.rpartition(":")
    if not host or any(c in "/@?# \t\r\n\0" for c in host) or (":" in host and not rest.startswith("[")):
        raise ValueError(f"address {address!r} is not of the form {scheme}://host:port")
    if not host.isascii() or len(host) > 253 or ".." in host or host.startswith("."):
        raise ValueError(f"address {address!r} has a host that no name server knows")
    if not (port_text.isascii() and port_text.isdigit()) or not 0 < int(port_text) < 65_536:
        raise ValueError(f"address {address!r} needs a port between 1 and 65535")
    return scheme, host, int(port_text)
