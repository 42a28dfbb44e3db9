"""What is sent while there is no connection: the newest state message, commands in order and within a bound."""

from router.client.waiting import MAX_BYTES, Waiting
from router.transport.codec.robot.wire import Command


def command(data):
    return Command(data, 0, False)


def test_the_newest_state_message_alone_is_kept():
    waiting = Waiting()
    assert waiting.put_state(b"old", 1) is False
    assert waiting.put_state(b"new", 2) is True
    assert waiting.put_back([], (b"of a lost connection", 3)) == 0
    assert waiting.take() == ([], (b"new", 2))
    assert waiting.take() == ([], None)
    early = (b"of a lost connection", 3)
    waiting.put_back([], early)
    assert waiting.take()[1] is early  # by which a connection knows what it has sent already


def test_commands_are_kept_in_order_within_a_bound():
    waiting = Waiting()
    one, two, three = command(b"1"), command(b"2" * (MAX_BYTES - 1)), command(b"3")
    assert waiting.put_back([one, two, three], None) == 1
    assert waiting.put_command(three) is False
    assert waiting.take() == ([one, two], None)
    assert waiting.put_command(three) is True
    assert waiting.take() == ([three], None)


def test_what_a_connection_never_sent_goes_before_what_was_told_since():
    waiting = Waiting()
    waiting.put_command(command(b"second"))
    waiting.put_command(command(b"third"))
    assert waiting.put_back([command(b"first")], None) == 0
    assert [one.data for one in waiting.take()[0]] == [b"first", b"second", b"third"]
    waiting.put_command(command(b"2"))
    assert waiting.put_back([command(b"1" * MAX_BYTES)], None) == 1, "within the bound all the same"
    assert waiting.put_command(command(b"")) is True
