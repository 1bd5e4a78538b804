"""The device: which one, in which precision, how fast at best, how full."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch

from shunter.config.errors import ShunterError
from shunter.record.memory import current_rss

# Dense bf16 peaks without sparsity, FLOP/s, from the vendors' data sheets.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Raises ShunterError when `name` is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ShunterError(
            f"how.device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices",
            mend="Use how.device=auto or cpu.",
        )
    return device


def choose_precision(wanted: str, device: torch.device) -> str:
    """`auto` is bf16 where its matrix products are much faster than fp32's, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if "amx_bf16" in _cpu_flags() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 with fp32 weights, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def set_determinism(on: bool) -> None:
    """Refuse kernels that are known to vary from run to run (torch names them when they are met)."""
    torch.use_deterministic_algorithms(on)


def memory_mib(device: torch.device) -> float:
    """Memory in use: the device's peak on CUDA, the process's resident set on CPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return (current_rss() or 0) / 2**20


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Best FLOP/s: the data sheet's for known GPUs in bf16, else of a measured square product."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for key, peak in _PEAKS.items():
            if key in name:
                return peak
    n = 4096 if device.type == "cuda" else 768
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


@cache
def _cpu_flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.split())
    return frozenset()
