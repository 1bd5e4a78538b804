"""Small facts that ranks tell each other, as JSON."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from shunter.parallel.mesh import Peers


def told_by_all(fact: Any, peers: Peers, device: torch.device) -> list[Any]:
    """What each rank says, in their order; on all ranks. Every one of the peers calls it.

    fact: anything that JSON can say. device: where the group's messages are.
    """
    if peers.size == 1:
        return [json.loads(json.dumps(fact))]
    data = torch.frombuffer(bytearray(json.dumps(fact).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in peers.ranks]
    dist.all_gather(sizes, torch.tensor([len(data)], dtype=torch.int64, device=device), group=peers.group)
    padded = torch.zeros(int(max(sizes)), dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in peers.ranks]
    dist.all_gather(parts, padded, group=peers.group)
    return [
        json.loads(bytes(part[: int(size)].cpu().numpy())) for part, size in zip(parts, sizes, strict=True)
    ]
