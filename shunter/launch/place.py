"""This process among those that torchrun (or anything that sets the same variables) has started."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shunter.config.errors import ShunterError

NAMED = "SHUNTER_HOST"  # how the person named this host; else it is called as it calls itself
END = "SHUNTER_END"  # a file for the exit code: torchrun itself ends with 1, whatever the cause
# Of processes that wait, or are torchrun: a lost connection is told in one line, not with the stack in C++.
DEFAULTS = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
PREFIXES = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "TORCH_NCCL_ASYNC")


@dataclass(frozen=True)
class Place:
    """rank of size processes; local_rank of local_size on this node; address and port of rank 0's store.

    agent: torchrun's agent holds the store; else rank 0 makes it.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    address: str
    port: int
    agent: bool
    host: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place | None:
        """None for a process that is alone. Raises ShunterError for variables that make no sense."""
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
            return None
        size = _number(environment, "WORLD_SIZE", 1)
        if size == 1:
            return None
        rank = _number(environment, "RANK", 0)
        local_rank = _number(environment, "LOCAL_RANK", 0, default=rank)
        local_size = _number(environment, "LOCAL_WORLD_SIZE", 1, default=size)
        if rank >= size or local_rank >= local_size:
            raise ShunterError(
                f"rank {rank} of {size} and local rank {local_rank} of {local_size} cannot be",
                where="RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE",
                mend="Let torchrun set them.",
            )
        return cls(
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            node=_number(environment, "GROUP_RANK", 0, default=rank // local_size),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT", 1, default=29500),
            agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            host=environment.get(NAMED) or socket.gethostname(),
        )

    @property
    def leads(self) -> bool:
        """The first process of its node."""
        return self.local_rank == 0


def leave(environment: MutableMapping[str, str]) -> None:
    """Forget the variables: a library that finds them would wait for the other processes."""
    for name in [name for name in environment if name.startswith(PREFIXES)]:
        del environment[name]


def is_follower() -> bool:
    """Whether another process speaks for this one: then it prints nothing."""
    try:
        place = Place.of(os.environ)
    except ShunterError:
        return False
    return place is not None and place.rank > 0


def tell_end(code: int) -> None:
    """Write the exit code where it is asked for."""
    if wanted := os.environ.get(END):
        with suppress(OSError):
            Path(wanted).write_text(f"{code}\n")


def _number(environment: Mapping[str, str], name: str, least: int, *, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit() or int(text) < least:
        raise ShunterError(
            f"{text!r} is no number of at least {least}", where=name, mend="Let torchrun set it."
        )
    return int(text)
