"""Open robot sessions as the admin listener shows them: of all workers together, the worst link first. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.transport.codec.robot.shown import GAP_BOUNDS_US

if TYPE_CHECKING:
    from router.control import Robots


def merged_robots(answers: list[Robots], silent: list[int], limit: int) -> dict[str, Any]:
    """Return what GET /debug/robots answers.

    `open`: how many sessions there are; `left_out`: how many of them are not among `robots`, which are at most
    `limit`; `silent_workers` did not answer in time, and theirs are not counted.
    """
    shown = [robot for answer in answers for robot in answer.shown]
    shown.sort(key=lambda robot: (-robot.badness_us, robot.session))
    count = sum(answer.open for answer in answers)
    shown = shown[:limit]
    return {
        "open": count,
        "left_out": count - len(shown),
        "silent_workers": silent,
        "gap_bounds_us": GAP_BOUNDS_US,
        "robots": shown,
    }
