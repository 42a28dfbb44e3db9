"""What a process that a test started says first."""

import select


def first_line(process, within_s=30.0):
    """The first line of its standard output: the ready line; empty if it ends, or if none came in time."""
    poll = select.poll()  # not select(), which takes no descriptor above 1,023
    poll.register(process.stdout, select.POLLIN)
    return process.stdout.readline() if poll.poll(within_s * 1_000) else b""
