"""Open sessions as a worker knows them: which tokens hold, how many each replica has, which are in use here.

One index serves every version of the table, as `credentials`: a session that ended is refused at once. Open is what
the table says is open. A session that it does not have is open where it began after what the table is known to
have, by the store's clock: a moment ago, or since the store fell silent. Never once it was seen to end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.errors import Kind, ProxyError, Source
from router.routing.session_token import SessionKeys
from router.walltime import WallTime

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.routing.balancer import Picker
    from router.routing.load import Replica
    from router.routing.session_token import SessionClaim
    from router.routing.spec import SessionEntry
    from router.routing.table import Endpoint

COMMIT_S: Final = 3.0  # from the time that a token says to the commit of its session
FUTURE_S: Final = 60.0  # by which a clock may differ from the store's
BEGUN_S: Final = 60.0  # for the table to show what began here
ENDED_S: Final = 120.0  # for which an end is remembered
MAX_ENDED: Final = 100_000
MAX_VERIFIED: Final = 16_384  # tokens remembered so that each is verified once
_INVALID: Final = ProxyError(Kind.SESSION_INVALID, Source.DOWNSTREAM)
_ELSEWHERE: Final = ProxyError(Kind.FORBIDDEN, Source.DOWNSTREAM, detail="the session is of another endpoint")
_GONE: Final = ProxyError(Kind.SESSION_GONE, Source.DOWNSTREAM)


class Session:
    """One session that was shown here."""

    __slots__ = ("endpoint", "environment", "generation", "id", "idle_s", "issued_s", "minter", "replica")

    def __init__(self, claim: SessionClaim) -> None:
        self.id = claim.id
        self.endpoint = claim.endpoint
        self.environment = claim.environment
        self.replica = claim.replica.encode()
        self.generation = claim.generation
        self.idle_s = claim.idle_s
        self.issued_s = claim.issued_s
        self.minter = claim.minter


class SessionIndex:
    """The sessions of all endpoints. `keys` and what is open come with the table."""

    __slots__ = (
        "_begun",
        "_ended",
        "_full",
        "_in_flight",
        "_touched",
        "_verified",
        "_walltime",
        "counts",
        "keys",
        "known_to_s",
        "open",
    )

    def __init__(self, walltime: WallTime | None = None) -> None:
        self._walltime = walltime or WallTime()
        self.keys = SessionKeys()
        self.open: dict[str, SessionEntry] = {}
        self.counts: dict[tuple[str, str], int] = {}
        """Open ones by endpoint and replica; one that is being started here counts already."""
        self.known_to_s = 0.0  # by the store's time; 0 of a table that is this daemon's own, and always whole
        self._begun: dict[str, float] = {}  # here, and not seen in the table yet: since when
        self._ended: dict[str, float] = {}  # lately, and when: their tokens may still be young
        self._full: dict[str, Picker] = {}  # endpoints without room, and as of which picker
        self._in_flight: dict[str, int] = {}
        self._verified: dict[bytes, Session] = {}
        self._touched: dict[str, Session] = {}

    # -- with the table --------------------------------------------------------------------------------

    def set_keys(self, keys: tuple[bytes, ...]) -> None:
        """Take over other keys: what was signed with one that is gone is no token any more."""
        self.keys = SessionKeys(keys)
        self._verified.clear()

    def change(self, opened: Iterable[SessionEntry], ended: Iterable[str], now: float) -> None:
        """Take over which sessions began and ended."""
        for session_id in ended:
            entry = self.open.pop(session_id, None)
            if entry is not None:
                self.count(entry.endpoint, entry.replica, -1)
                self._begun.pop(session_id, None)
            self.forget(session_id, now)
        for entry in opened:
            before = self.open.get(entry.id)
            if before is not None:
                self.count(before.endpoint, before.replica, -1)
            self.count(entry.endpoint, entry.replica, 1)
            self.open[entry.id] = entry
            self._begun.pop(entry.id, None)
            self._ended.pop(entry.id, None)

    def begin(self, entry: SessionEntry, now: float) -> None:
        """Take a session for open that was begun here, ahead of the table."""
        if entry.id not in self.open and entry.id not in self._ended:
            self.count(entry.endpoint, entry.replica, 1)
            self.open[entry.id] = entry
            self._begun[entry.id] = now

    def settle(self, now: float) -> None:
        """Let go of those that the table did not get to see: they ended before it was read."""
        while self._begun:
            session_id = next(iter(self._begun))
            if now - self._begun[session_id] < BEGUN_S:
                break
            del self._begun[session_id]
            entry = self.open.pop(session_id)
            self.count(entry.endpoint, entry.replica, -1)

    def forget(self, session_id: str, now: float) -> None:
        """Refuse a session from now on, whatever the table still says."""
        known_s = self._known_s(now)
        self._ended.pop(session_id, None)
        self._ended[session_id] = known_s
        while self._ended:
            oldest = next(iter(self._ended))
            if known_s - self._ended[oldest] < ENDED_S and len(self._ended) <= MAX_ENDED:
                break
            del self._ended[oldest]

    def _known_s(self, now: float) -> float:
        """Return the Unix time up to which the table tells what there is."""
        return self.known_to_s or self._walltime.at(now)

    def unix_s(self, now: float) -> float:
        """Return the time of day."""
        return self._walltime.at(now)

    def count(self, endpoint: str, replica: str, change: int) -> None:
        """Count a session more or less on a replica."""
        if change < 0:
            self._full.pop(endpoint, None)
        name = (endpoint, replica)
        left = self.counts.get(name, 0) + change
        if left > 0:
            self.counts[name] = left
        else:
            self.counts.pop(name, None)

    # -- requests --------------------------------------------------------------------------------------

    def find(self, token: bytes, endpoint: Endpoint, now: float) -> Session | ProxyError:
        """Return the session that a token stands for on this endpoint, or why it does not."""
        session = self.verified(token)
        if session is None:
            return _INVALID
        if session.endpoint != endpoint.name or session.environment != endpoint.environment:
            return _ELSEWHERE
        if session.id in self._ended:
            return _GONE
        if session.id not in self.open:
            is_future = session.issued_s > self._walltime.at(now) + FUTURE_S
            if is_future or session.issued_s + COMMIT_S < self._known_s(now):
                return _GONE
        return session

    def verified(self, token: bytes) -> Session | None:
        """Return the session that a token of ours stands for, open or not."""
        session = self._verified.get(token)
        if session is None:
            claim = self.keys.read(token)
            if claim is None:
                return None
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            session = self._verified[token] = Session(claim)
        return session

    def enter(self, session: Session) -> None:
        """Count a request of a session."""
        self._in_flight[session.id] = self._in_flight.get(session.id, 0) + 1
        self._touched[session.id] = session

    def leave(self, session: Session) -> None:
        """Count its end."""
        left = self._in_flight[session.id] - 1
        if left:
            self._in_flight[session.id] = left
        else:
            del self._in_flight[session.id]
        self._touched[session.id] = session

    def take_touched(self) -> list[tuple[Session, bool]]:
        """Return the sessions that began or ended a request since the last time, and whether one is under way."""
        touched = [(session, session_id in self._in_flight) for session_id, session in self._touched.items()]
        self._touched.clear()
        return touched

    # -- new ones --------------------------------------------------------------------------------------

    def choose(self, picker: Picker, endpoint: str, max_per_replica: int) -> Replica | Kind:
        """Return the replica for a new session: in the nearest tier with room, who has fewest for its weight."""
        if self._full.get(endpoint) is picker:  # many that wait look ten times a second each
            return Kind.AT_CAPACITY
        refusal = Kind.NO_REPLICA
        for tier in picker.tiers:
            best: Replica | None = None
            best_load = (0.0, 0)
            for replica in tier.eligible:
                count = self.counts.get((endpoint, replica.id), 0)
                if count >= max_per_replica:
                    refusal = Kind.AT_CAPACITY
                    continue
                load = (count / replica.weight, replica.total_in_flight())
                if best is None or load < best_load:
                    best, best_load = replica, load
            if best is not None:
                return best
        if refusal is Kind.AT_CAPACITY:
            self._full[endpoint] = picker
        return refusal
