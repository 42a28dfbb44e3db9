"""How old what arrives is: the state lane against one ordered stream, on the same link with the same packets lost."""

import pytest

from tests.transport.codec.robot.clientkit import Pair, Queue


def ages(lane, size, hz, seed, seconds=20):
    """Return the ages of messages at their arrival, sorted; 50 ms of round trip that vary by 10 each way, 1 % lost."""
    up, down = Queue(0.02, 0.01, 0.01, seed), Queue(0.02, 0.01, 0.01, seed + 100)
    rig = Pair(up, down, change=lambda config: setattr(config, "initial_window", 1 << 20))
    up.rig = down.rig = rig
    rig.welcomed()
    rig.run(limit_s=1.0)
    begin_s = rig.now
    sent_s, found, seen = {}, [], [0]
    act = rig._act

    def watch():
        act()
        messages = rig.replica.messages
        while seen[0] < len(messages):
            found.append(rig.now - sent_s[int(messages[seen[0]][:5])])
            seen[0] += 1

    def send(number):
        sent_s[number] = rig.now
        payload = b"%05d" % number + bytes(size - 5)
        assert rig.state_in(payload) if lane == "state" else rig.command_in(payload)

    rig._act = watch
    rig.at([begin_s + number / hz for number in range(int(seconds * hz))], send)
    rig.run(limit_s=5.0)
    return sorted(found)


def p99(values):
    return values[int(len(values) * 0.99)]


@pytest.mark.parametrize(
    ("size", "hz", "at_least"),
    [
        (1_000, 50, 2.0),  # a packet each, far below what the link carries: 30 ms against 89
        (4_000, 50, 2.0),  # 68 ms against 794
        (6_000, 50, 5.0),  # as much as the link carries after its losses: 99 ms against 3,668
    ],
)
def test_newest_wins_beats_one_ordered_stream(size, hz, at_least):
    state, ordered = [], []
    for seed in (1, 2, 3):
        state += ages("state", size, hz, seed)
        ordered += ages("command", size, hz, seed)
    assert len(ordered) == 3 * 20 * hz
    assert len(state) > len(ordered) / 2
    assert p99(sorted(ordered)) >= at_least * p99(sorted(state))
