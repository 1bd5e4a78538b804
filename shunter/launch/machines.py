"""Whether several machines can work together: gathered from all, told once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch.crew import Crew
from shunter.launch.route import is_loopback
from shunter.recipe import disk
from shunter.recipe.preflight import MIN_FREE

APART = 1.0  # seconds between two clocks that are worth a warning
ANSWER = 60.0  # seconds that a machine gets to tell of itself: it may load torch from a slow disk first
SLOW = 5.0  # a link this many times slower than the fastest is worth a warning


@dataclass(frozen=True)
class Problem:
    """breaks: no run can go well with it."""

    breaks: bool
    text: str


@dataclass
class Machines:
    """nodes: what each told of itself. links: from each node to the next, the last to the first.

    clock: seconds that a node's clock is ahead of the first's.
    """

    nodes: list[dict[str, Any]]
    links: list[dict[str, Any]]
    store: str
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(problem.breaks for problem in self.problems)

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}

    def refuse(self) -> None:
        """Raise ShunterError where something breaks: one line each."""
        if lines := [problem.text for problem in self.problems if problem.breaks]:
            raise ShunterError("\n".join(lines))


def share(crew: Crew, store: Path) -> None:
    """Raise ShunterError, naming the node, unless all see the same store."""
    text = secrets.token_hex(16)
    path = store / f".crew-{text[:8]}"
    try:
        path.write_text(text, encoding="utf-8")
        found = crew.ask({"do": "see", "path": str(path), "text": text}, range(crew.size), ANSWER)
    finally:
        path.unlink(missing_ok=True)
    for rank, wrong in found.items():
        if wrong is not None:
            raise ShunterError(
                f"{crew.host(rank)} does not see the store of {crew.host(0)}: a file just written {wrong}",
                where=str(store),
                mend="Put the store where all machines see it under the same path, with --store.",
            )


def gather(crew: Crew, store: Path, base: Path, device: str = "auto") -> Machines:
    """Ask and measure: seconds, whatever the number of machines, since all measure at once.

    base: the recipe's folder. device: what jobs ask for; with `cpu` GPUs are not counted.
    """
    leaders = list(crew.leaders.values())
    order = {"do": "facts", "store": str(store), "base": str(base)}
    told = crew.ask(order, leaders, ANSWER)
    nodes = [{**told[rank], "host": crew.host(rank)} for rank in leaders]
    links = _measure(crew, leaders, nodes)
    found = Machines(nodes, links, str(store))
    found.problems = [
        *differences(nodes),
        *_devices(nodes, device),
        *_disks(nodes),
        *judge_links(nodes, links),
    ]
    return found


def _measure(crew: Crew, leaders: Sequence[int], nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fills in each node's address and clock; returns the links of the ring."""
    token = secrets.token_hex(16)
    doors = crew.ask({"do": "listen", "token": token}, leaders, ANSWER)
    for node, rank in zip(nodes, leaders, strict=True):
        node.update(doors[rank])
    targets: dict[str, list[list[Any]]] = {}
    first = doors[leaders[0]]
    for at, rank in enumerate(leaders):
        after = doors[leaders[(at + 1) % len(leaders)]]
        mine: list[list[Any]] = []
        if len(leaders) > 1:
            mine.append(["next", after["address"], after["port"]])
        if at:
            mine.append(["clock", first["address"], first["port"]])
        targets[str(rank)] = mine
    found = crew.ask({"do": "measure", "token": token, "targets": targets}, leaders, ANSWER)
    crew.ask({"do": "hush"}, leaders, ANSWER)
    links = []
    for at, rank in enumerate(leaders):
        clock = found[rank].get("clock", {})
        nodes[at]["clock"] = 0.0 if at == 0 else -clock["clock"] if "clock" in clock else None
        if "next" in found[rank]:
            to = nodes[(at + 1) % len(nodes)]["host"]
            seen = {key: value for key, value in found[rank]["next"].items() if key != "clock"}
            links.append({"from": nodes[at]["host"], "to": to, **seen})
    return links


def differences(nodes: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """What is not the same on all machines and should be."""
    found = []
    first = nodes[0]
    breaking = {
        "torch": "Install the same torch on all machines.",
        "nccl": "Install the same torch on all machines.",
        "digest": "Bring the same files of shunter to all machines.",
    }
    for node in nodes[1:]:
        for key, mend in breaking.items():
            if node[key] != first[key]:
                name = "code of shunter" if key == "digest" else key
                mine, theirs = (_told(key, each) for each in (first, node))
                found.append(
                    Problem(True, f"{node['host']} has {name} {theirs}, {first['host']} {mine}. {mend}")
                )
        mine, theirs = (".".join(each["python"].split(".")[:2]) for each in (first, node))
        if mine != theirs:
            found.append(
                Problem(
                    False, f"{node['host']} has Python {node['python']}, {first['host']} {first['python']}."
                )
            )
        if node["digest"] == first["digest"] and node["commit"] != first["commit"]:
            text = f"{node['host']} is at commit {_short(node)}, {first['host']} at {_short(first)}"
            found.append(Problem(False, f"{text}; the files agree."))
        if sorted(set(node["devices"])) != sorted(set(first["devices"])):
            text = (
                f"{node['host']} has {_count(node['devices'])}, {first['host']} {_count(first['devices'])}."
            )
            found.append(Problem(False, text))
        if not node["recipe_seen"]:
            text = f"{node['host']} does not see the recipe's folder, so no file beside the recipe."
            found.append(Problem(False, text))
    return found


def _told(key: str, node: Mapping[str, Any]) -> str:
    if key == "digest":
        return f"{node['shunter']} ({node['digest']})"
    return str(node[key] or "not at all")


def _devices(nodes: Sequence[Mapping[str, Any]], device: str) -> list[Problem]:
    found = []
    with_gpus = [node for node in nodes if node["gpus"]] if device != "cpu" else []
    for node in with_gpus:
        if node["ranks"] > node["gpus"]:
            text = (
                f"{node['host']} has {node['gpus']} GPUs for {node['ranks']} processes. Start fewer on each."
            )
            found.append(Problem(True, text))
    if with_gpus and len(with_gpus) < len(nodes):
        lacking = next(node for node in nodes if not node["gpus"])
        text = (
            f"{lacking['host']} has no GPU, {with_gpus[0]['host']} has. Set how.device=cpu, or leave it out."
        )
        found.append(Problem(True, text))
    return found


def _disks(nodes: Sequence[Mapping[str, Any]]) -> list[Problem]:
    low = [node for node in nodes if node["free_bytes"] is not None and node["free_bytes"] < MIN_FREE]
    return [
        Problem(
            True,
            f"{node['host']}: only {disk.human(node['free_bytes'])} are free for the store. Free some space.",
        )
        for node in low
    ]


def judge_links(nodes: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Links that do not work or are much slower than others, addresses that cannot be meant, clocks apart."""
    found = []
    if len({node["name"] for node in nodes}) > 1:
        for node in nodes:
            if is_loopback(node["address"]):
                text = f"{node['host']} takes rank 0's name for its own loopback address {node['address']}."
                mend = "Give an address that all machines reach with --address (torchrun: --master-addr)."
                found.append(Problem(True, f"{text} {mend}"))
    for link in links:
        if "error" in link:
            text = f"{link['from']} cannot reach {link['to']} ({link['error']})."
            found.append(Problem(True, f"{text} Let firewalls pass TCP on all ports between the machines."))
    speeds = [link["bandwidth"] for link in links if "bandwidth" in link]
    for link in links:
        if "bandwidth" in link and link["bandwidth"] * SLOW < max(speeds):
            text = (
                f"the link from {link['from']} to {link['to']} carries {disk.human(link['bandwidth'])}/s, "
                f"the fastest {disk.human(max(speeds))}/s."
            )
            found.append(Problem(False, text))
    for node in nodes:
        if node["clock"] is None:
            found.append(Problem(True, f"{node['host']} cannot reach {nodes[0]['host']} to compare clocks."))
        elif abs(node["clock"]) > APART:
            way = "ahead of" if node["clock"] > 0 else "behind"
            text = f"the clock of {node['host']} is {abs(node['clock']):.1f} s {way} {nodes[0]['host']}'s."
            found.append(Problem(False, f"{text} Logs will look out of order; let NTP set it."))
    return found


def _count(devices: Sequence[str]) -> str:
    if not devices:
        return "no accelerator"
    return ", ".join(f"{devices.count(name)} x {name}" for name in sorted(set(devices)))


def _short(node: Mapping[str, Any]) -> str:
    return str(node["commit"] or "none")[:10]
