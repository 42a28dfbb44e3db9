"""The memory that a host's workers share: loads, the turns of limited tokens, who has computed which prefix.

One file without a name, made by the supervisor and inherited by its workers. A row of the load board for each
worker, then the rate board, then the prefix board. Pages that nobody writes to take no room.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from router.routing.credentials import RateBoard
from router.routing.load import BOARD_CELLS, BOARD_SLOTS, LoadBoard
from router.routing.prefix import CELLS, PrefixBoard

_CELL_BYTES = 8


class Boards(NamedTuple):
    """One process's view of the shared memory."""

    load: LoadBoard | None
    rates: RateBoard
    prefixes: PrefixBoard


def make_boards(workers: int) -> int:
    """Return the descriptor of the memory for so many workers."""
    fd = os.memfd_create("router-boards")
    os.ftruncate(fd, _size(workers))
    return fd


def map_boards(fd: int, worker: int, workers: int, secret: bytes = b"") -> Boards:
    """Return the boards as `worker` sees them; a single one needs no memory that others see.

    The supervisor's own row, behind the workers', is for what a predecessor of the daemon still has in flight.
    """
    memory = memoryview(mmap.mmap(-1 if workers == 1 else fd, _size(workers)))
    rows = workers + 1
    rates = rows * BOARD_CELLS * _CELL_BYTES
    prefixes = rates + BOARD_SLOTS * _CELL_BYTES
    load = LoadBoard(memory[:rates], worker, rows, BOARD_CELLS) if workers > 1 else None
    return Boards(load, RateBoard(memory[rates:prefixes]), PrefixBoard(memory[prefixes:], secret))


def _size(workers: int) -> int:
    return ((workers + 1) * BOARD_CELLS + BOARD_SLOTS + CELLS) * _CELL_BYTES
