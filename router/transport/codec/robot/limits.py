"""Every bound of a robot's session in the router by name, with its reason; those of the wire are in `wire.py`."""

from __future__ import annotations

from typing import Final

HELLO_LIMIT_S: Final = 10.0
"""From the connection's beginning to its HELLO, as with a request's head."""
MAX_WAITING_BYTES: Final = 1_048_576
"""Of whole commands that the replica does not take yet; then the lane gets no more credit."""
COMMAND_BYTES: Final = 128
"""What a command counts for beside its payload: empty ones are not for nothing."""
MAX_GATHERED_BYTES: Final = 16_777_216
"""Of incomplete state messages together; then the oldest of them is given up."""
CONTROL_BURST: Final = 32.0
CONTROL_RATE: Final = 8.0
"""Control frames at once, and a second; a client that measures sends three."""
DATAGRAM_BURST: Final = 64.0
DATAGRAM_RATE: Final = 64.0
"""PINGs and PONGs in DATAGRAMs at once, and a second. More are not answered: to who asks, they are lost."""
TELEMETRY_BURST: Final = 1_000.0
TELEMETRY_RATE: Final = 2_000.0
"""Telemetry of one session at once, and a second; more is dropped. A control loop at 1 kHz passes, and so does a
second of it that a link held back."""
MAX_TELEMETRY_WAITING: Final = 192
"""DATAGRAMs that wait in a connection to a sidecar, from which on telemetry is dropped: of the 256 that it keeps 64
are left to PINGs and PONGs, which come in bursts of so many."""
DIRECT_EVERY_S: Final = 5.0
"""Between two questions of a robot for its replica's place: each has us send to places that the robot names."""
MAX_UNREAD_BYTES: Final = 16_384
"""Of control frames that the client's window does not take; ours are a hundred bytes a second."""
PING_S: Final = 1.0
MAX_PINGS: Final = 16
"""Measurements of the clock that are remembered, and PINGs that wait for an answer."""
GOODBYE_S: Final = 2.0
"""For the client to acknowledge the last it was sent, for the replica to take the last commands."""
PAGE_S: Final = 0.25
"""For a page to read what its browser has acknowledged, before a session is closed."""
STALL_S: Final = 10.0
"""That the command lane's replies stay above the high mark: a robot that stopped reading is no robot at work."""
BACK_OFF_S: Final = (0.0, 0.1, 0.4, 1.0)
EPOCH_TRIES: Final = len(BACK_OFF_S)
"""Replicas that are tried in a row."""
EPOCH_GOOD_S: Final = 10.0
"""After so long with one replica the next row of tries begins anew."""
MAX_REASON_BYTES: Final = 512
"""Of a refusal's text."""
MAX_REPORTED: Final = 1_000_000
"""By how much one LINK may raise a count: what a client says is not to be believed without end."""
NEARLY_BYTES: Final = 16_384
"""Of a state message that are not sent yet, or a quarter of it if that is less: so few that it is as good as sent
and the next one may begin."""
MAX_UNDER_WAY: Final = 8
"""State messages of ours that were sent and not acknowledged; for a ninth the oldest is given up."""
