"""Ranks that tell what was asked of devices before they were forked. They load what all kinds of ranks do."""

from __future__ import annotations

from typing import Any

import torch

from shunter.jobs import emulate, ranks, rehearse, reshard, traffic
from shunter.plan import probe
from shunter.train import profiler

LOADS = tuple(
    name for each in (ranks, emulate, rehearse, reshard, traffic, probe, profiler) for name in each.LOADS
)
TOUCHED: list[str] = []


def _watch(place: Any, name: str) -> None:
    real = getattr(place, name, None)

    def noted(*args: Any, **more: Any) -> Any:
        TOUCHED.append(name)
        return real(*args, **more)  # type: ignore[misc]

    if real is not None:
        setattr(place, name, noted)


for name in ("is_available", "device_count", "init", "_lazy_init", "current_device", "get_device_properties"):
    _watch(torch.cuda, name)
for name in ("_cuda_getDeviceCount", "_cuda_init", "_accelerator_getAccelerator", "_accelerator_deviceCount"):
    _watch(torch._C, name)


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """What had been asked for when the ranks were forked."""
    return {"touched": TOUCHED, "size": size}
