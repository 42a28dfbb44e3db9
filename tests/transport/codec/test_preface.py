"""Before a client has spoken: how long it is waited for, and what a listener that retires makes of it."""

from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_NO
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.preface import Preface


class Shell:
    def __init__(self):
        self.touches = self.watches = 0

    def touch(self):
        self.touches += 1

    def watch(self):
        self.watches += 1

    def unsent_bytes(self):
        return 0


def preface():
    shell = Shell()
    return Preface(lambda is_http2: None, ServerLimits(keep_alive_s=75.0, retire_s=5.0), shell, 100.0), shell


def test_a_drain_closes_it():
    codec, shell = preface()
    codec.drain()
    assert codec.close == CLOSE_FLUSH and shell.touches


def test_a_loop_that_is_late_resets_no_client_that_is_told_goodbye():
    """The kernel needs a moment to send the FIN: a deadline that is over at once would turn it into a reset."""
    codec, _ = preface()
    codec.handle_deadline(175.0)
    assert codec.close == CLOSE_FLUSH
    assert codec.next_deadline() > 176.0
    codec.take_output(180.0)
    assert codec.next_deadline() == 180.0 + ServerLimits().linger_s
    codec.handle_deadline(codec.next_deadline())
    assert codec.close == CLOSE_ABORT


def test_retired_it_waits_for_the_request_that_may_be_on_its_way():
    codec, shell = preface()
    assert codec.next_deadline() == 175.0
    codec.retire(120.0)
    assert codec.close == CLOSE_NO and shell.watches
    assert codec.next_deadline() == 125.0
    codec.handle_deadline(125.0)
    assert codec.close == CLOSE_FLUSH


def test_retired_it_gives_no_more_time_to_a_slow_beginning():
    codec, _ = preface()
    codec.receive(b"PRI * ", 101.0)
    codec.retire(105.0)
    assert codec.next_deadline() == 111.0
