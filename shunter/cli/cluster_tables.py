"""A cluster as tables: what its devices reach, and its links."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from shunter.recipe.disk import human

if TYPE_CHECKING:
    from shunter.cluster.description import Description
    from shunter.plan.profile import Profile


def show(it: Description) -> None:
    """Print it."""
    from shunter.cluster.device import CLASSES

    console = Console(highlight=False)
    console.print(f"[bold]{it.name}[/bold]")
    for name, kind in it.devices.items():
        copy = f", {human(kind.copy_bandwidth)}/s to the host" if kind.copy_bandwidth else ""
        console.print(
            f"{name}: {human(kind.memory)}, {human(kind.memory_bandwidth)}/s{copy}; "
            f"{kind.overlap_slowdown:.2f} times slower beside messages",
            soft_wrap=True,
        )
        table = Table("TFLOP/s", "peak", *CLASSES, box=None, header_style="bold", pad_edge=False)
        for dtype, rates in kind.flops.items():
            achieved = {str(c): rate for c, rate in rates.achieved.items()}
            spreads = {str(c): spread for c, spread in rates.spread.items()}
            cells = [f"{achieved[c] / 1e12:.3g}" if c in achieved else "" for c in CLASSES]
            cells = [
                f"{cell} ±{100 * spreads[c]:.0f} %" if c in spreads else cell
                for c, cell in zip(CLASSES, cells, strict=True)
            ]
            table.add_row(dtype, f"{rates.peak / 1e12:.3g}", *cells)
        console.print(table)
    table = Table(
        "link", "type", "latency", "bandwidth", "spread", box=None, header_style="bold", pad_edge=False
    )
    for name, link in it.links.items():
        spread = "" if link.spread is None else f"±{100 * link.spread:.0f} %"
        table.add_row(name, link.type, f"{1e6 * link.latency:.0f} us", f"{human(link.bandwidth)}/s", spread)
    console.print(table)
    if it.measured and it.measured.collectives:
        table = Table(
            "collective", "ranks", "latency", "bandwidth", box=None, header_style="bold", pad_edge=False
        )
        for each in it.measured.collectives:
            rate = f"{human(each.bandwidth)}/s"
            table.add_row(each.op, str(each.ranks), f"{1e6 * each.latency:.0f} us", rate)
        console.print(table)


def show_profile(it: Profile) -> None:
    """Print what a model takes on a machine."""
    console = Console(highlight=False)
    console.print(f"[bold]{it.machine}[/bold], rows of {it.row} tokens, {it.products}", soft_wrap=True)
    table = Table(
        "part", "tensor ranks", "rows", "forward", "backward", box=None, header_style="bold", pad_edge=False
    )
    for name in ("layer", "embedding", "head"):
        for degree, part in getattr(it, name).items():
            for rows, ahead, behind in zip(
                part.forward.sizes, part.forward.seconds, part.backward.seconds, strict=True
            ):
                took = [f"{1e3 * seconds:.2f} ms" for seconds in (ahead, behind)]
                table.add_row(name, str(degree), f"{rows:g}", *took)
    console.print(table)
    table = Table("message", "ranks", "least", "bandwidth", box=None, header_style="bold", pad_edge=False)
    for kind, curves in it.messages.items():
        for count, curve in curves.items():
            rate = f"{human(curve.sizes[-1] / curve.seconds[-1])}/s"
            table.add_row(kind, str(count), f"{1e6 * curve.seconds[0]:.0f} us", rate)
    if it.messages:
        console.print(table)
    console.print(f"optimizer: {1e9 * it.update.seconds[-1] / it.update.sizes[-1]:.2f} ns a parameter")
