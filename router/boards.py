"""The memory that a host's workers share: what is in flight where, and when limited tokens may call again.

One file without a name, made by the supervisor and inherited by its workers. A row of the load board for each
worker, then the rate board.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from router.routing.credentials import RateBoard
from router.routing.load import BOARD_CELLS, BOARD_SLOTS, LoadBoard

_CELL_BYTES = 8


class Boards(NamedTuple):
    """One process's view of the shared memory."""

    load: LoadBoard | None
    rates: RateBoard


def make_boards(workers: int) -> int:
    """Return the descriptor of the memory for so many workers. Pages that nobody writes to take no room."""
    fd = os.memfd_create("router-boards")
    os.ftruncate(fd, (workers * BOARD_CELLS + BOARD_SLOTS) * _CELL_BYTES)
    return fd


def map_boards(fd: int, worker: int, workers: int) -> Boards:
    """Return the boards as `worker` sees them; a single one needs no memory that others see."""
    if workers == 1:
        return Boards(None, RateBoard(memoryview(bytearray(BOARD_SLOTS * _CELL_BYTES))))
    shared = memoryview(mmap.mmap(fd, (workers * BOARD_CELLS + BOARD_SLOTS) * _CELL_BYTES))
    split = workers * BOARD_CELLS * _CELL_BYTES
    return Boards(LoadBoard(shared[:split], worker, workers, BOARD_CELLS), RateBoard(shared[split:]))
