"""A role: what a worker does for the controller, and where it does it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.layout.generation import Hybrid
from shunter.parallel.mesh import Peers, ProcessGroups

# Kind -> module:class. A worker imports it by this name; no code travels.
KINDS: dict[str, str] = {
    "prompts": "shunter.post.roles.asking:Prompts",
    "actor": "shunter.post.roles.actor:Actor",
    "writer": "shunter.post.roles.writes:Writer",
    "critic": "shunter.post.roles.models:Critic",
    "reference": "shunter.post.roles.models:Reference",
    "reward": "shunter.post.roles.grading:Reward",
    "judge": "shunter.post.roles.grading:Judge",
}


@dataclass(frozen=True)
class Station:
    """Where a role is: its rank and layout on a pool, the groups of the pool, and a folder for its files.

    exact: sums over ranks are the same bits for any number of them.
    """

    name: str
    rank: int
    layout: Hybrid
    everyone: Peers
    groups: ProcessGroups
    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    exact: bool = False


class Role:
    """Methods marked with `operation` are called by the controller. `told` are small facts that go to it with
    the notice that a call is done."""

    def __init__(self, station: Station, **settings: Any) -> None:
        self.station = station
        self.told: dict[str, float] = {}

    def close(self) -> None:
        """Give back what the role holds besides memory."""

    def tell(self, **facts: float) -> None:
        """Small numbers for the controller."""
        self.told |= {name: float(value) for name, value in facts.items()}


def class_of(kind: str) -> type[Role]:
    """The class of a kind, or of `module:Class`. Raises ShunterError where there is none."""
    entry = KINDS.get(kind, kind)
    module, colon, name = entry.partition(":")
    if not colon:
        near = nearest(kind, KINDS)
        raise ShunterError(
            f"there is no role of the kind {kind!r}",
            mend=f"Did you mean {near}?" if near else "Name your own class as module:Class.",
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ShunterError(f"the role {entry} cannot be imported ({error})") from None
    if not (isinstance(found, type) and issubclass(found, Role)):
        raise ShunterError(f"{entry} is no role", mend="Derive it from shunter.post.roles.role.Role.")
    return found


def protocol_of(kind: type[Role], method: str) -> str:
    """The protocol of an operation. Raises ShunterError for a method that is none."""
    protocol = getattr(getattr(kind, method, None), "protocol", None)
    if protocol is None:
        operations = [name for name in dir(kind) if hasattr(getattr(kind, name, None), "protocol")]
        raise ShunterError(
            f"{kind.__name__} has no operation {method!r}", mend=f"It has {', '.join(operations) or 'none'}."
        )
    return str(protocol)


def settings_of(kind: type[Role], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that can be sent: paths as text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
