"""The report on several machines: one table, one line a problem."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shunter.recipe.disk import human

if TYPE_CHECKING:
    from shunter.launch.machines import Machines


def show(found: Machines, stream: TextIO | None = None) -> None:
    """Print it: a machine a line, with its link to the next; below, what does not fit."""
    console = Console(file=stream or sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=stream or sys.stdout, highlight=False, width=1000)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("machine", "processes", "Python", "torch", "shunter", "devices", "clock", "store free"):
        table.add_column(column)
    table.add_column("to the next: round trip")
    table.add_column("bandwidth")
    links = {link["from"]: link for link in found.links}
    for node in found.nodes:
        link = links.get(node["host"], {})
        nothing = "none" if link else ""
        table.add_row(
            *map(
                Text,
                (
                    node["host"],
                    str(node["ranks"]),
                    node["python"],
                    node["torch"],
                    _code(node),
                    _devices(node),
                    "unknown" if node["clock"] is None else f"{1000 * node['clock']:+.1f} ms",
                    "unknown" if node["free_bytes"] is None else human(node["free_bytes"]),
                    f"{1e6 * link['latency']:.0f} us" if "latency" in link else nothing,
                    f"{human(link['bandwidth'])}/s" if "bandwidth" in link else nothing,
                ),
            )
        )
    console.print(table)
    for problem in found.problems:
        word, style = ("refused", "red") if problem.breaks else ("warning", "yellow")
        console.print(Text.assemble((f"{word}: ", style), problem.text), soft_wrap=True)


def _code(node: dict[str, Any]) -> str:
    commit = f" at {node['commit'][:10]}" if node["commit"] else ""
    return f"{node['shunter']}{commit}{' +' if node['dirty'] else ''}"


def _devices(node: dict[str, Any]) -> str:
    names = node["devices"]
    counted = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join(counted) or f"{node['cores']} cores"
