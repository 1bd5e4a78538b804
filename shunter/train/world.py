"""This process among those that train one model together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.launch.meeting import meeting
from shunter.parallel.lost import answering
from shunter.parallel.transport import Groups
from shunter.recipe.job import Control


@dataclass(frozen=True)
class World:
    """The ranks of a pipeline. device: where this rank computes, and its messages are."""

    groups: Groups
    rank: int
    device: torch.device

    @property
    def size(self) -> int:
        return len(self.groups.ranks)

    @property
    def group(self) -> dist.ProcessGroup:
        assert self.groups.up is not None
        return self.groups.up

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all ranks, in place."""
        with answering(self.rank, "add up with the others"):
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def first(self, value: int) -> int:
        """Rank 0's value, on all ranks."""
        told = torch.tensor([value], dtype=torch.int64, device=self.device)
        with answering(self.rank, "hear rank 0"):
            dist.broadcast(told, self.groups.ranks[0], group=self.group)
        return int(told)

    def shared(self, control: Control) -> Control:
        """Requests as rank 0 hears them: all ranks must act on one between the same two steps."""
        return _Shared(self, control)


class _Shared:
    def __init__(self, world: World, control: Control) -> None:
        self.world, self.control = world, control

    def stop_requested(self) -> bool:
        heard = self.world.rank == 0 and self.control.stop_requested()
        return bool(self.world.first(int(heard)))

    def take_save_request(self) -> bool:
        heard = self.world.rank == 0 and self.control.take_save_request()
        return bool(self.world.first(int(heard)))


def join(rank: int, size: int, device: str, timeout: float) -> World:
    """Meet the other ranks, which elastic launch told how to. device: auto, cpu or cuda.

    timeout: seconds after which a rank that is silent is given up. Raises ShunterError where there are
    fewer GPUs than ranks.
    """
    use_cuda = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", rank))
    if use_cuda:
        if local >= torch.cuda.device_count():
            raise ShunterError(
                f"{size} ranks need {size} GPUs, and here are {torch.cuda.device_count()}",
                mend="Use fewer ranks, or how.device=cpu.",
            )
        torch.cuda.set_device(local)
    place = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    wait = timedelta(seconds=timeout)
    dist.init_process_group(
        "nccl" if use_cuda else "gloo",
        store=meeting(rank, size, wait),
        rank=rank,
        world_size=size,
        timeout=wait,
    )
    return World(Groups.create(range(size), timeout=wait), rank, place)
