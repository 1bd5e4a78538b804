"""How fast the device of this process multiplies, attends, and moves its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shunter.cluster.device import shape_class
from shunter.record.spread import Median, median

# (m, n, k) of products, from small to large: the time of each is foreseen from the one before.
SHAPES = (
    (64, 1024, 1024), (128, 128, 128), (256, 1024, 1024), (512, 512, 512), (1024, 4096, 1024),
    (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 4096),
)  # fmt: skip
ATTENTION = ((1, 8, 512, 64), (1, 16, 2048, 128))  # rows, heads, length, width of a head
TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "tf32": "float32"}


@dataclass(frozen=True)
class Patience:
    """repeats: timings of each thing, each of at least `least` seconds. most: seconds of one call beyond
    which a shape is left out."""

    repeats: int = 9
    least: float = 0.05
    most: float = 4.0


QUICK = Patience(5, 0.01, 0.25)


def measure_rates(
    device: Any, patience: Patience, say: Callable[[str], None]
) -> dict[str, dict[str, Median]]:
    """Format -> class of shape -> FLOP/s: of products the best shape of the class, of causal attention the
    best length. Forward only. Classes that would take too long are left out, and said to be."""
    found: dict[str, dict[str, Median]] = {}
    for dtype in ("fp32", "bf16") if device.type == "cpu" else ("bf16", "fp16", "tf32", "fp32"):
        found[dtype] = {}
        rate = 0.0
        for shape in SHAPES:
            name, work = shape_class(*shape), 2.0 * shape[0] * shape[1] * shape[2]
            if rate and work / rate > patience.most:
                say(f"{dtype} {shape} left out: one product takes about {work / rate:.1f} s")
                continue
            rate = _best(found[dtype], name, _product(shape, dtype, device, patience), work)
        for b, h, s, d in ATTENTION:
            work = 4.0 * b * h * s * s * d / 2
            if work / rate <= patience.most:
                _best(found[dtype], "attention", _attention((b, h, s, d), dtype, device, patience), work)
        say(f"{dtype}: " + ", ".join(f"{k} {v.value / 1e12:.3g} TFLOP/s" for k, v in found[dtype].items()))
    return found


def _best(found: dict[str, Median], name: str, took: Median, work: float) -> float:
    rate = work / took.value
    if name not in found or rate > found[name].value:
        found[name] = Median(rate, took.spread)
    return rate


def _product(shape: tuple[int, int, int], dtype: str, device: Any, patience: Patience) -> Median:
    import torch

    m, n, k = shape
    kind = getattr(torch, TORCH_NAMES[dtype])
    a = torch.randn(m, k, device=device).to(kind)
    b = torch.randn(k, n, device=device).to(kind)
    out = torch.empty(m, n, device=device, dtype=kind)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    try:
        return seconds(lambda: torch.mm(a, b, out=out), device, patience)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _attention(shape: tuple[int, int, int, int], dtype: str, device: Any, patience: Patience) -> Median:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    kind = getattr(torch, TORCH_NAMES[dtype])
    q, k, v = (torch.randn(shape, device=device).to(kind) for _ in range(3))
    return seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True), device, patience)


def memory_bandwidth(device: Any, patience: Patience) -> Median:
    """Bytes a second that a copy reads and writes."""
    import torch

    size = (1 << 30) if device.type == "cuda" else (1 << 26)
    a, b = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    took = seconds(lambda: b.copy_(a), device, patience)
    return Median(2 * size / took.value, took.spread)


def copy_bandwidth(device: Any, patience: Patience) -> Median | None:
    """Bytes a second from pinned memory of the host; none on a CPU, which is the host."""
    import torch

    if device.type != "cuda":
        return None
    size = 1 << 28
    host, there = (
        torch.zeros(size, dtype=torch.uint8, pin_memory=True),
        torch.zeros(size, dtype=torch.uint8, device=device),
    )
    took = seconds(lambda: there.copy_(host, non_blocking=True), device, patience)
    return Median(size / took.value, took.spread)


def seconds(call: Callable[[], Any], device: Any, patience: Patience) -> Median:
    """Of one call, after one to get warm; each timing is of as many calls as take long enough."""
    call()
    count = 1
    while (took := _timed(call, count, device)) < patience.least:
        count = max(count + 1, int(count * min(10.0, 1.2 * patience.least / max(took, 1e-6))))
    return median([_timed(call, count, device) / count for _ in range(patience.repeats)])


def _timed(call: Callable[[], Any], count: int, device: Any) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def overlap(device: Any, patience: Patience, send: Callable[[], Any]) -> float:
    """How many times longer products take while messages are under way, at least 1.

    send: begins a collective and returns its handle; called again as soon as it is done.
    """
    import torch

    side = 4096 if device.type == "cuda" else 384
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.randn(side, side, device=device).to(kind)
    alone = seconds(lambda: torch.mm(a, a), device, patience).value
    count = max(5, int(0.1 / alone))

    def both() -> Iterator[float]:
        for _ in range(patience.repeats):
            handles = [send() for _ in range(4)]
            yield _timed(lambda: torch.mm(a, a), count, device) / count
            for handle in handles:
                handle.wait()

    return max(1.0, median(list(both())).value / alone)
