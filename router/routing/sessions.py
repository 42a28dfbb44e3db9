"""Open sessions as a worker knows them: which tokens hold, how many each replica has, which are in use here.

One index serves every version of the table, as `credentials`: a session that ended is refused at once. Open is what
the table says is open. A token that it does not know is good while it is young: the table may be a moment behind,
or longer while nothing is heard of the store. Never once its session was seen to end.
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

YOUNG_S: Final = 60.0  # for which a token is believed before the table knows it
MAX_VERIFIED: Final = 65_536  # tokens remembered so that each is verified once
_INVALID: Final = ProxyError(Kind.SESSION_INVALID, Source.DOWNSTREAM)
_ELSEWHERE: Final = ProxyError(Kind.FORBIDDEN, Source.DOWNSTREAM, detail="the session is of another endpoint")
_GONE: Final = ProxyError(Kind.SESSION_GONE, Source.DOWNSTREAM)


class Session:
    """One session that was shown here."""

    __slots__ = ("endpoint", "environment", "id", "idle_s", "issued_s", "minter", "replica")

    def __init__(self, claim: SessionClaim) -> None:
        self.id = claim.id
        self.endpoint = claim.endpoint
        self.environment = claim.environment
        self.replica = claim.replica.encode()
        self.idle_s = claim.idle_s
        self.issued_s = claim.issued_s
        self.minter = claim.minter


class SessionIndex:
    """The sessions of all endpoints. `keys` and what is open come with the table."""

    __slots__ = (
        "_ended",
        "_in_flight",
        "_touched",
        "_verified",
        "_walltime",
        "counts",
        "heard_s",
        "keys",
        "open",
    )

    def __init__(self, walltime: WallTime | None = None) -> None:
        self._walltime = walltime or WallTime()
        self.keys = SessionKeys()
        self.open: dict[str, SessionEntry] = {}
        self.counts: dict[tuple[str, str], int] = {}
        """Open ones by endpoint and replica; one that is being started here counts already."""
        self.heard_s = 0.0  # when the store was heard last, by its own time, if that is long ago
        self._ended: dict[str, float] = {}  # to the Unix time at which a token of it is old anyway
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
            self.forget(session_id, now)
        for entry in opened:
            if entry.id not in self.open:
                self.count(entry.endpoint, entry.replica, 1)
            self.open[entry.id] = entry
            self._ended.pop(entry.id, None)

    def forget(self, session_id: str, now: float) -> None:
        """Refuse a session from now on, whatever the table still says."""
        wall_s = self._walltime.at(now)
        self._ended[session_id] = wall_s + YOUNG_S
        while self._ended:
            oldest = next(iter(self._ended))
            if self._ended[oldest] > wall_s:
                break
            del self._ended[oldest]

    def count(self, endpoint: str, replica: str, change: int) -> None:
        """Count a session more or less on a replica."""
        name = (endpoint, replica)
        left = self.counts.get(name, 0) + change
        if left > 0:
            self.counts[name] = left
        else:
            self.counts.pop(name, None)

    # -- requests --------------------------------------------------------------------------------------

    def find(self, token: bytes, endpoint: Endpoint, now: float) -> Session | ProxyError:
        """Return the session that a token stands for on this endpoint, or why it does not."""
        session = self._verified.get(token)
        if session is None:
            claim = self.keys.read(token)
            if claim is None:
                return _INVALID
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            session = self._verified[token] = Session(claim)
        if session.endpoint != endpoint.name or session.environment != endpoint.environment:
            return _ELSEWHERE
        if session.id in self._ended:
            return _GONE
        if session.id not in self.open:
            known_to_s = self.heard_s or self._walltime.at(now)
            if known_to_s - session.issued_s >= YOUNG_S:
                return _GONE
        return session

    def unix_s(self, now: float) -> int:
        """Return the time of day that a new token says."""
        return int(self._walltime.at(now))

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
        return refusal
