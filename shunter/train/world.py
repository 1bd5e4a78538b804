"""This process among those that train one model together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.launch.meeting import meeting
from shunter.layout.grid import Grid
from shunter.parallel.lost import answering
from shunter.parallel.mesh import Groups, Mesh, Peers, ProcessGroups
from shunter.recipe.job import Control


@dataclass(frozen=True)
class World:
    """The ranks of a layout. device: where this rank computes, and its messages are."""

    mesh: Mesh
    device: torch.device

    @classmethod
    def create(
        cls,
        grid: Grid,
        rank: int,
        device: torch.device,
        groups: ProcessGroups,
        others: Sequence[Grid] = (),
    ) -> World:
        """Every rank of the grid calls it. others: grids that some layers have (`Parallel.others`)."""
        return cls(Mesh(grid, rank, groups, others), device)

    @property
    def groups(self) -> Groups | None:
        """For messages of the pipeline that this rank is in; None where a stage is the whole model."""
        return self.mesh.pipeline

    @property
    def rank(self) -> int:
        return self.mesh.rank

    @property
    def size(self) -> int:
        return self.mesh.grid.size

    @property
    def stage(self) -> int:
        """This rank's place in its pipeline."""
        return self.mesh.place["pp"]

    @property
    def data(self) -> Peers:
        """The ranks that see other rows, with the same place in the model."""
        return self.mesh.peers("dp", "fsdp")

    def sum(self, tensor: Tensor, peers: Peers | None = None) -> Tensor:
        """Over all ranks, or over those, in place."""
        peers = peers or self.mesh.everyone
        if peers.size > 1:
            with answering(self.rank, "add up with the others"):
                dist.all_reduce(tensor, group=peers.group)
        return tensor

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Within it each rank works by itself, as long as it takes; at the end all wait for the last, while
        it lives. Every rank calls it. what: for what they wait. Raises PeerLost."""
        heartbeat = self.mesh.heartbeat
        with nullcontext() if heartbeat is None else heartbeat.alone(what):
            yield

    def first(self, value: int) -> int:
        """Rank 0's value, on all ranks."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.int64, device=self.device)
        with answering(self.rank, "hear rank 0"):
            dist.broadcast(told, self.mesh.everyone.ranks[0], group=self.mesh.everyone.group)
        return int(told)

    def shared(self, control: Control) -> Shared:
        """Requests as rank 0 hears them: all ranks must act on one between the same two steps."""
        return Shared(self, control)


class Shared:
    """One message of rank 0 answers all that is asked between two steps: whether to stop, whether to save,
    and `more`, which whoever trains may put in."""

    def __init__(self, world: World, control: Control) -> None:
        self.world, self.control = world, control
        self.more: Callable[[], bool] = lambda: False
        self.answer = False  # to `more`, as of the last `stop_requested`
        self._save: bool | None = None  # heard with it, and not yet taken

    def stop_requested(self) -> bool:
        heard = 0
        if self.world.rank == 0:
            waiting = self._save or self.control.take_save_request()
            heard = int(self.control.stop_requested()) | waiting << 1 | self.more() << 2
        told = self.world.first(heard)
        self._save, self.answer = bool(told & 2), bool(told & 4)
        return bool(told & 1)

    def take_save_request(self) -> bool:
        if self._save is None:  # nothing was asked before it
            self.stop_requested()
        found, self._save = bool(self._save), None
        return found


def join(grid: Grid, rank: int, device: str, timeout: float, others: Sequence[Grid] = ()) -> World:
    """Meet the other ranks, which their launcher told how to. device: auto, cpu or cuda.

    others: grids that some layers have. timeout: seconds after which a rank that is silent is given up.
    Raises ShunterError where there are fewer GPUs than ranks.
    """
    use_cuda = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", rank))
    if use_cuda:
        if local >= torch.cuda.device_count():
            raise ShunterError(
                f"{grid.size} ranks need {grid.size} GPUs, and here are {torch.cuda.device_count()}",
                mend="Use fewer ranks, or how.device=cpu.",
            )
        torch.cuda.set_device(local)
    place = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    wait = timedelta(seconds=timeout)
    store = meeting(rank, grid.size, wait)
    dist.init_process_group(
        "nccl" if use_cuda else "gloo",
        store=store,
        rank=rank,
        world_size=grid.size,
        timeout=wait,
    )
    return World.create(grid, rank, place, ProcessGroups(store=store, timeout=wait), others)
