"""Cluster files: read, written, and found by name among those that come with shunter."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.config import write, yaml
from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest

MACHINES = Path(__file__).parent / "machines"
_TIMES = re.compile(r"(?P<count>[1-9]\d{0,6})x(?P<rest>.+)", re.IGNORECASE)
_FILE = (".yaml", ".yml")


def read(path: str | Path) -> Cluster:
    """A cluster's file. Raises ShunterError with file and line for one that is not sound."""
    source = yaml.load(path)
    return Cluster.of(parse(Description, source.data, source), source)


def dumps(description: Description) -> str:
    """As YAML that `read` takes, without what is left at its default."""
    tree: dict[str, Any] = description.model_dump(exclude_defaults=True)
    described = {"pairs": "Links that differ from the groups'.", "measured": "Made by `shunter probe`."}
    return write.dumps(tree, lambda path: described.get(str(path[0])) if len(path) == 1 else None)


def save(description: Description, path: str | Path) -> None:
    """Write a cluster's file, whole or not at all. Raises ShunterError where that cannot be."""
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(dumps(description), encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise ShunterError(f"cannot be written ({error.strerror})", where=str(path)) from None


def names() -> list[str]:
    """Machines that come with shunter."""
    return sorted(path.stem for path in MACHINES.glob("*.yaml"))


def find(text: str) -> Cluster:
    """A cluster as a person names it on the command line.

    A path that ends in .yaml, a shipped machine (`8xa100-80`), several of one (`16x8xA100-80`: 16 nodes), or
    a number of devices of a kind that a shipped machine has (`4xA100-80`: four devices of one node; `24x...`:
    whole nodes). Case does not matter. Raises ShunterError for anything else.
    """
    if text.endswith(_FILE) or os.sep in text:
        return read(text)
    name = text.lower()
    if name in names():
        return read(MACHINES / f"{name}.yaml")
    found = _TIMES.fullmatch(name)
    if found:
        count, rest = int(found["count"]), found["rest"]
        if rest in names():
            return _nodes(read(MACHINES / f"{rest}.yaml").description, count)
        for machine in names():
            description = read(MACHINES / f"{machine}.yaml").description
            if list(description.devices) == [rest]:
                return _devices(description, count, text)
    guess = nearest(name, names()) or (nearest(found["rest"], [*names(), *kinds()]) if found else None)
    mend = f"Did you mean {guess!r}?" if guess else f"Known are {', '.join(names())}; or name a .yaml file."
    raise ShunterError(f"there is no cluster {text!r}", mend=mend)


def kinds() -> list[str]:
    """Devices of which any number may be named: those of shipped machines with one kind."""
    found = []
    for machine in names():
        devices = read(MACHINES / f"{machine}.yaml").description.devices
        found += list(devices) if len(devices) == 1 else []
    return sorted(set(found))


def _nodes(description: Description, count: int) -> Cluster:
    """So many of a machine with one group of nodes."""
    if len(description.nodes) > 1:
        raise ShunterError(
            f"{description.name} has several groups of nodes: {count} of it is not defined",
            mend="Write a file of your own.",
        )
    ((group, nodes),) = description.nodes.items()
    more = nodes.model_copy(update={"count": nodes.count * count})
    name = f"{count}x{description.name}"
    return Cluster.of(description.model_copy(update={"nodes": {group: more}, "name": name}))


def _devices(description: Description, count: int, text: str) -> Cluster:
    """So many devices: of one node, or whole nodes."""
    ((group, nodes),) = description.nodes.items()
    each = nodes.devices
    if count > each and count % each:
        raise ShunterError(
            f"{text}: a node has {each} of them, and {count} are no whole nodes",
            mend=f"Ask for {count // each * each} or {(count // each + 1) * each}.",
        )
    more = nodes.model_copy(update={"count": max(1, count // each)})
    whole = Cluster.of(description.model_copy(update={"nodes": {group: more}, "name": text}))
    return whole if whole.world == count else whole.subcluster(range(count))
