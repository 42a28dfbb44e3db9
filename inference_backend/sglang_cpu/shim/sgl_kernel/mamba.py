"""State-space kernels: importable, not callable."""

from __future__ import annotations

from typing import Any, Never


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args: object, **options: object) -> Never:
        raise NotImplementedError(f"sgl_kernel.mamba.{name} needs a GPU")

    return absent
