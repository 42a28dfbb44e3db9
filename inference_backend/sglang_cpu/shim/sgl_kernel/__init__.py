"""Stands in for SGLang's compiled kernels: the one that its CPU path calls for every request, in plain torch.

There must be no `convert_weight_packed`: by its absence SGLang knows that this CPU has no packed matrix code,
and takes its own torch implementations everywhere else. Whatever else is asked for can be imported and fails
when called.
"""

from __future__ import annotations

from typing import Any, Never

__version__ = "0.0.0"


def assign_req_to_token_pool_cpu(
    rows: Any, table: Any, first: Any, last: Any, slots: Any, _width: int
) -> None:
    """Write each request's new cache slots into its row of `table`, from column `first` to `last`."""
    taken = 0
    for row, begin, end in zip(rows.tolist(), first.tolist(), last.tolist(), strict=True):
        table[row, begin:end] = slots[taken : taken + end - begin].to(table.dtype)
        taken += end - begin


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args: object, **options: object) -> Never:
        raise NotImplementedError(f"sgl_kernel.{name} needs a GPU")

    return absent
