"""Robots of our own client against a policy behind the router: many of them, over a bad network, and on the move.

    fleet    so many at 10 Hz with 300 KB: is a deadline missed?
    newest   what a policy knows of the world, by newest wins and by one ordered stream, through loss and jitter
    move     what a change of the client's address costs

Times are CLOCK_MONOTONIC's, which all processes of a machine share. Imports `relay`, `policy` and `place`.
"""

from __future__ import annotations

import asyncio
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Literal

import uvloop

from loadtest.cpu import cpu_ns
from loadtest.percentiles import percentile
from loadtest.quic.figures import Figure
from loadtest.quic.policy import MARK_BYTES, TIME_BYTES
from loadtest.quic.relay import Relay
from router.client import RobotSession
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from loadtest.quic.place import Place

ROBOTS, ROBOT_HZ, OBSERVATION_BYTES = 20, 10.0, 300_000
DEADLINE_S = 0.1
RTT_S, JITTER_S, LOSS = 0.05, 0.01, 0.01
STATE_BYTES, STATE_HZ = 4_096, 50.0
LOOK_EVERY_S = 0.005
LAST_S = 1.0


def mark(number: int) -> bytes:
    """Return the first bytes of a message: now, and its number."""
    return monotonic_ns().to_bytes(8, "big") + number.to_bytes(8, "big")


class Robot:
    """One session: sends at its rate; keeps (number, sent, arrived there, answered) of each answer, in seconds."""

    def __init__(self, port: int, lane: Literal["state", "command"], replies: Literal["state", "command"]) -> None:
        self._lane: Literal["state", "command"] = lane
        self._session = RobotSession(
            f"quic://127.0.0.1:{port}/", verify=False, transport="quic", replies=replies, websocket_url=""
        )
        self.sent = 0
        self.began_s = self.ended_s = 0.0
        self.answers: list[tuple[int, float, float, float]] = []

    async def drive(self, hz: float, size: int, seconds: float, first_s: float = 0.0) -> Robot:
        """Connect, and drive for so long."""
        body = bytes(size - MARK_BYTES)
        async with self._session as session:
            await session.recv(5.0)  # the policy's metadata
            await asyncio.sleep(first_s)
            reading = spawn(self._read(session), "bench robot")
            self.began_s = monotonic()
            # Counted, and each time from the first: a sum of intervals drifts, by how long the host has been up.
            while self.sent < round(seconds * hz):
                self.sent += 1
                session.send(mark(self.sent) + body, self._lane)
                await asyncio.sleep(max(0.0, self.began_s + self.sent / hz - monotonic()))
            self.ended_s = monotonic()
            await reading
        return self

    async def _read(self, session: RobotSession) -> None:
        while not self.ended_s or len(self.answers) < self.sent:
            message = await session.recv(LAST_S)
            if message is None:
                if self.ended_s:
                    return
                continue
            data = message.data
            number = int.from_bytes(data[8:MARK_BYTES], "big")
            sent, arrived = (int.from_bytes(data[at : at + TIME_BYTES], "big") / 1e9 for at in (0, MARK_BYTES))
            self.answers.append((number, sent, arrived, monotonic()))

    def unanswered(self) -> int:
        """Return how many messages had no answer."""
        return self.sent - len(self.answers)

    def round_trips(self) -> list[float]:
        """Return the seconds from each message to its answer."""
        return [answered - sent for _, sent, _, answered in self.answers]


def fleet(place: Place, *, quick: bool) -> list[Figure]:
    """Many robots through one worker."""
    port, worker = place.router()
    seconds = 3.0 if quick else 10.0

    async def drive() -> list[Robot]:
        robots = [Robot(port, "state", "state") for _ in range(ROBOTS)]
        waits = [place_of / ROBOTS / ROBOT_HZ for place_of in range(ROBOTS)]
        tasks = zip(robots, waits, strict=True)
        return list(
            await asyncio.gather(
                *(one.drive(ROBOT_HZ, OBSERVATION_BYTES, seconds, wait_s) for one, wait_s in tasks)
            )
        )

    before, began = cpu_ns([worker])[worker], monotonic()
    robots = uvloop.run(drive())
    share = (cpu_ns([worker])[worker] - before) / 1e9 / (monotonic() - began)
    trips = sorted(trip for robot in robots for trip in robot.round_trips())
    gaps = sorted(
        later[3] - earlier[3]
        for robot in robots
        for earlier, later in zip(robot.answers, robot.answers[1:], strict=False)
    )
    sent = sum(robot.sent for robot in robots)
    missed = sent - len(trips) + sum(trip > DEADLINE_S for trip in trips)
    work = "fleet"
    return [
        Figure(work=work, name=f"observations of {ROBOTS} robots", value=sent, unit=""),
        Figure(work=work, name="missed 100 ms, or unanswered", value=missed, unit="", at_most=0),
        Figure(work=work, name="observation to actions: p50", value=percentile(trips, 0.5) * 1e3, unit="ms"),
        Figure(work=work, name="observation to actions: p99", value=percentile(trips, 0.99) * 1e3, unit="ms"),
        Figure(work=work, name="gap between actions: p99", value=percentile(gaps, 0.99) * 1e3, unit="ms"),
        Figure(work=work, name="gap between actions: longest", value=gaps[-1] * 1e3, unit="ms"),
        Figure(work=work, name="worker's share of a CPU", value=share * 100, unit="%"),
    ]


def on_arrival(robot: Robot) -> list[float]:
    """Return how old each message was that arrived; ascending."""
    return sorted(there - sent for _, sent, there, _ in robot.answers)


def known(robot: Robot) -> list[float]:
    """Return how old the newest that had arrived was, looked at again and again; ascending."""
    arrived = sorted((there, sent) for _, sent, there, _ in robot.answers)
    found: list[float] = []
    newest, at, place = 0.0, robot.began_s + 4 * RTT_S, 0
    while at < robot.ended_s:
        while place < len(arrived) and arrived[place][0] <= at:
            newest = max(newest, arrived[place][1])
            place += 1
        if newest:
            found.append(at - newest)
        at += LOOK_EVERY_S
    return sorted(found)


def newest(place: Place, *, quick: bool) -> list[Figure]:
    """Newest wins beside one ordered stream, both through the same losses."""
    port, _ = place.router()
    seconds = 6.0 if quick else 20.0

    async def drive() -> tuple[Robot, Robot]:
        relays = [Relay(port, rtt_s=RTT_S, jitter_s=JITTER_S, loss=LOSS) for _ in range(2)]
        async with relays[0] as first, relays[1] as second:
            by_state, in_order = Robot(first.port, "state", "command"), Robot(second.port, "command", "command")
            await asyncio.gather(*(one.drive(STATE_HZ, STATE_BYTES, seconds) for one in (by_state, in_order)))
            return by_state, in_order

    by_state, in_order = uvloop.run(drive())
    share = by_state.unanswered() / by_state.sent
    found = [Figure(work="newest", name="given up for a newer one", value=share * 100, unit="%")]
    rows = (("age on arrival", on_arrival, 0.5), ("age of what the policy knows", known, None))
    for name, figure, at_most in rows:
        ours, theirs = (percentile(figure(robot), 0.99) for robot in (by_state, in_order))
        found += [
            Figure(work="newest", name=f"{name}: p99", value=ours * 1e3, unit="ms"),
            Figure(work="newest", name=f"{name}: p99, one ordered stream", value=theirs * 1e3, unit="ms"),
            Figure(work="newest", name=f"{name}: over the ordered", value=ours / theirs, unit="x", at_most=at_most),
        ]
    return found


def move(place: Place, *, quick: bool) -> list[Figure]:
    """Commands at 50 Hz while the client's address changes again and again."""
    port, _ = place.router()
    moves = 3 if quick else 10

    async def drive() -> tuple[Robot, list[float]]:
        async with Relay(port, rtt_s=RTT_S) as relay:
            robot = Robot(relay.port, "command", "command")
            driving = spawn(robot.drive(STATE_HZ, 100, moves + 1.0), "bench robot on the move")
            moved = []
            for _ in range(moves):
                await asyncio.sleep(1.0)
                moved.append(monotonic())
                await relay.forget()
            await driving
            return robot, moved

    robot, moved = uvloop.run(drive())
    usual = percentile(sorted(robot.round_trips()), 0.5)
    worst = [
        max((answered - sent for _, sent, _, answered in robot.answers if -RTT_S <= sent - at < 0.5), default=9.0)
        for at in moved
    ]
    costs = sorted((trip - usual) / RTT_S for trip in worst)
    numbers = [number for number, *_ in robot.answers]
    lost = robot.sent - len(set(numbers)) + (numbers != sorted(numbers))
    work = "move"
    return [
        Figure(work=work, name="command to answer: p50", value=usual * 1e3, unit="ms"),
        Figure(work=work, name="what a change of address costs: median", value=percentile(costs, 0.5), unit="RTT"),
        Figure(work=work, name="what a change of address costs: most", value=costs[-1], unit="RTT", at_most=2),
        Figure(work=work, name="commands lost, or out of order", value=lost, unit="", at_most=0),
    ]
