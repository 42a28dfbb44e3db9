"""The command lane at the robot's end, over two engines: backpressure both ways, and what never left."""

from router.transport.codec.robot import control
from router.transport.codec.robot.client_commands import MAX_UNSENT_BYTES
from router.transport.codec.robot.limits import MAX_WAITING_BYTES
from tests.transport.codec.robot.clientkit import Pair


def test_commands_that_nobody_takes_are_no_longer_sent():
    rig = Pair(takes=False, hello=control.Hello("robots.test", replies="command")).welcomed()
    rig.replica.binary(b"metadata")
    sent = 0
    while not rig.replica.paused:
        rig.replica.binary(bytes(100_000))
        sent += 1
        rig.run(limit_s=0.1)
        assert sent < 100
    held = sum(len(data) for _, _, data in rig.messages)
    assert held <= MAX_WAITING_BYTES + 2 * 1_048_576
    for _, _, data in rig.messages:
        rig.robot.took(data)
    rig.takes = True
    assert rig.run(lambda: len(rig.messages) == sent + 1)
    assert not rig.replica.paused


def test_commands_beyond_the_bound_are_refused_and_say_so():
    rig = Pair().welcomed()
    rig.up.drop = lambda data: True
    taken = 0
    while rig.command_in(bytes(100_000)):
        taken += 1
        assert taken < 200
    assert taken * 100_000 <= MAX_UNSENT_BYTES + 1_200_000


def test_what_never_left_can_be_sent_elsewhere():
    rig = Pair().welcomed()
    rig.up.drop = lambda data: True
    for number in range(40):
        assert rig.command_in(b"%02d" % number + bytes(100_000))
    rig.state_in(bytes(300_000))
    rig.run(limit_s=0.2)
    rig.state_in(b"a" + bytes(300_000))
    rig.state_in(b"b" + bytes(300_000))
    commands, state = rig.robot.unsent()
    numbers = [int(command.data[:2]) for command in commands]
    assert numbers == list(range(numbers[0], 40))
    assert 1 <= numbers[0] < 40
    assert state is None or state[0][:1] == b"b"
