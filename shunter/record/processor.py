"""What this machine's processor can. Imports without torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

# CPUs whose instructions multiply bfloat16 pairs. Measured on the quickstart's model by turns, steps in bf16
# take 0.68 of the time of those in fp32 with avx512_bf16 alone (AMD EPYC, Zen 4: 0.65 of 0.96 CPU seconds).
_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})

# With them oneDNN multiplies bfloat16 at all, if only as fast as fp32; without, torch has a plain loop.
_SOME_BF16 = frozenset({"avx512bw", "avx512dq", "avx512vl"})


def has_bf16() -> bool:
    """Whether products in bfloat16 are not many times slower than in fp32. Of what is no x86, True: nothing
    else was measured."""
    flags = _flags()
    return not flags or flags >= _SOME_BF16 or bool(_BF16_FLAGS & flags)


def multiplies_bf16() -> bool:
    """Whether products in bfloat16 are much faster than in fp32."""
    return bool(_BF16_FLAGS & _flags())


@cache
def _flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.split())
    return frozenset()
