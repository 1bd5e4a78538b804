"""The device: which one, in which precision, how fast at best, how full."""

from __future__ import annotations

import os
import re
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from shunter.config.errors import ShunterError
from shunter.private import keep_of_activations
from shunter.record.memory import current_rss, peak_rss
from shunter.record.processor import multiplies_bf16

# Dense bf16 peaks without sparsity, FLOP/s, from the vendors' data sheets, by the driver's whole name:
# parts of one name differ by a third, and a slice of a device (MIG) has a name of its own.
_PEAKS = (
    (r"H100 \d+GB HBM3|H100 SXM\d?.*|H200|GH200 .*", 989e12),
    (r"H100 NVL|H200 NVL", 835e12),
    (r"H100 PCIe", 756e12),
    (r"A100[- ](SXM4|PCIE|PG509|80GB).*", 312e12),
    (r"L40S", 362e12),
    (r"GeForce RTX 4090", 165e12),
)
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


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
    """`auto` is bf16 where its matrix products are much faster than fp32's, else fp32.

    What the device is decides, not a measurement: on a busy machine that could come out either way, and the
    same configuration shall give the same weights on the same machine.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if multiplies_bf16() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 with fp32 weights, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def writes_in(device: torch.device, precision: str) -> torch.dtype | None:
    """The precision in which a learner's answers are written where that is not its weights' own: on a GPU,
    that of its products. A CPU's products of few rows are as fast with weights as they lie."""
    return torch.bfloat16 if device.type == "cuda" and precision == "bf16" else None


def compile_within(share: float) -> None:
    """Models compiled from now on keep this share of the activations that the compiler would keep.

    torch's partitioner chooses what is computed again by FLOP (its `activation_memory_budget`).
    """
    keep_of_activations(share)


def prepare_determinism(device: torch.device) -> None:
    """Give cuBLAS the fixed workspaces without which its sums vary; before the first CUDA call.

    Raises ShunterError when CUDA is in use already, without them.
    """
    if device.type != "cuda" or CUBLAS in os.environ:
        return
    if torch.cuda.is_initialized():
        raise ShunterError(
            f"how.deterministic needs {CUBLAS} before the first use of CUDA, and an earlier job has used it",
            mend=f"Run the same command again, or set {CUBLAS}=:4096:8 in the environment.",
        )
    os.environ[CUBLAS] = ":4096:8"


def generator_state(device: torch.device) -> str | None:
    """The state of the device's own random numbers, hexadecimal; None on a CPU."""
    if device.type != "cuda":
        return None
    return bytes(torch.cuda.get_rng_state(device).tolist()).hex()


def restore_generator(device: torch.device, state: str | None) -> None:
    """Restore what `generator_state` gave; nothing where either side has no such device."""
    if device.type == "cuda" and state is not None:
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8), device)


def set_determinism(on: bool) -> None:
    """Refuse kernels that are known to vary from run to run (torch names them when they are met)."""
    torch.use_deterministic_algorithms(on)


def memory_mib(device: torch.device) -> float:
    """Memory in use: the device's peak on CUDA, the process's resident set on CPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return (current_rss() or 0) / 2**20


def memory_peak(device: torch.device) -> int:
    """Bytes in use at most: of a CUDA device by this process, else of this process since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss()


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Best FLOP/s: the data sheet's for known GPUs in bf16, else of a measured square product."""
    if device.type == "cuda" and precision == "bf16":
        known = known_peak(torch.cuda.get_device_name(device))
        if known is not None:
            return known
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


def known_peak(name: str) -> float | None:
    """The data sheet's FLOP/s in bf16 for a GPU's name as the driver gives it; None if not listed."""
    if "MIG" in name:
        return None
    plain = name.removeprefix("NVIDIA ")
    return next((peak for pattern, peak in _PEAKS if re.fullmatch(pattern, plain)), None)
