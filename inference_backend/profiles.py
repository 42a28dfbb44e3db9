"""Step-time laws of real models on real GPUs.

`decode_ms = base(B) + c * KV` for a step over B running requests that hold KV tokens in all, and `prefill_ms
= p0 + p1 * n + p2 * sum(n_i * (n_i + m_i))` for a prefill of n uncached tokens, n_i of them from request i
behind m_i tokens already in the cache. The numbers are least-squares fits to NVIDIA AIConfigurator 0.12's
measured SGLang kernel database: dense models within 5 % (decode) and 10 % (prefill), where base(B) is a line;
for mixture-of-experts models a line is off by up to 39 %, so base(B) is a table, within 2.5 % of the grid.

Pure data and arithmetic. Durations are seconds outside this module's tables.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

_GIB_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one machine: its two laws, and the limits that SGLang would derive for it."""

    name: str
    model: str
    decode_base_ms: tuple[tuple[int, float], ...]  # (batch size, ms); linear between, extrapolated beyond
    decode_per_kv_ms: float
    prefill_ms: tuple[float, float, float]
    kv_tokens: int  # ~0.85 of the GPU memory, minus weights, over bytes per token
    context_tokens: int = 40_960
    chunk_tokens: int = 8_192  # SGLang's chunked_prefill_size on 80 and 141 GB GPUs
    max_running: int = 256

    def decode_s(self, batch: int, kv_tokens: int) -> float:
        """Seconds of one decode step of `batch` requests that hold `kv_tokens` in all."""
        return (_interpolate(self.decode_base_ms, batch) + self.decode_per_kv_ms * kv_tokens) / 1e3

    def prefill_s(self, parts: list[tuple[int, int]]) -> float:
        """Seconds of one prefill step of (uncached tokens, tokens already in the cache) per request."""
        p0, p1, p2 = self.prefill_ms
        total = 0
        square = 0
        for new, behind in parts:
            total += new
            square += new * (new + behind)
        return (p0 + p1 * total + p2 * square) / 1e3


def _interpolate(points: tuple[tuple[int, float], ...], at: int) -> float:
    right = min(max(bisect_left(points, (at,)), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def _line(a: float, b: float) -> tuple[tuple[int, float], ...]:
    return ((0, a), (1, a + b))


def _table(*base_ms: float) -> tuple[tuple[int, float], ...]:
    return tuple((1 << power, ms) for power, ms in enumerate(base_ms))


_ALL = (
    Profile(
        "qwen3-8b-h100",
        "Qwen/Qwen3-8B",
        _line(6.62, 0.0073),
        4.76e-5,
        (5.89, 0.01713, 8.42e-7),
        350 * _GIB_TOKENS,
    ),
    Profile(
        "qwen3-32b-fp8-h200",
        "Qwen/Qwen3-32B-FP8",
        _line(12.13, 0.0192),
        5.12e-5,
        (10.21, 0.05398, 1.884e-6),
        330 * _GIB_TOKENS,
    ),
    Profile(
        "qwen3-32b-h200",
        "Qwen/Qwen3-32B",
        _line(18.09, 0.0307),
        5.82e-5,
        (13.03, 0.07936, 3.321e-6),
        206 * _GIB_TOKENS,
    ),
    Profile(
        "llama-3.1-70b-h100-tp4",
        "meta-llama/Llama-3.1-70B-Instruct",
        _line(15.11, 0.0336),
        2.79e-5,
        (12.16, 0.05606, 1.2385e-6),
        400 * _GIB_TOKENS,
        context_tokens=131_072,
    ),
    Profile(
        "qwen3-30b-a3b-h200",
        "Qwen/Qwen3-30B-A3B",
        _table(3.85, 4.74, 6.07, 8.04, 9.23, 14.25, 15.97, 17.68),
        2.26e-5,
        (17.65, 0.00914, 6.545e-7),
        600 * _GIB_TOKENS,
    ),
    Profile(
        "qwen3-235b-a22b-fp8-h200-tp4",
        "Qwen/Qwen3-235B-A22B-FP8",
        _table(7.36, 9.11, 10.47, 12.11, 14.13, 20.52, 21.97, 25.67),
        9.87e-6,
        (25.41, 0.02568, 6.478e-7),
        1_270 * _GIB_TOKENS,
    ),
    Profile(
        "qwen3-coder-480b-h200-tp8",
        "Qwen/Qwen3-Coder-480B-A35B-Instruct",
        _table(7.26, 8.22, 10.36, 13.0, 17.19, 28.13, 30.64, 36.29),
        8.45e-6,
        (37.0, 0.0367, 1.365e-7),
        1_900 * _GIB_TOKENS,
        context_tokens=262_144,
    ),
    Profile(
        "deepseek-v3-fp8-h200-tp8",
        "deepseek-ai/DeepSeek-V3",
        _table(7.8, 8.93, 10.29, 11.86, 17.35, 21.43, 26.6, 29.14),
        1.22e-4,
        (25.95, 0.03181, 1.291e-6),
        512 * _GIB_TOKENS,
        context_tokens=163_840,
    ),
    # No real model: steps of a few milliseconds and a cache small enough to fill, for tests.
    Profile(
        "tiny",
        "tiny",
        _line(2.0, 0.01),
        1e-6,
        (2.0, 0.002, 1e-9),
        16 * _GIB_TOKENS,
        context_tokens=8_192,
        chunk_tokens=2_048,
        max_running=64,
    ),
)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in _ALL}
