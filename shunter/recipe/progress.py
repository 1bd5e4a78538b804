"""A line a job: coloured on a terminal, plain otherwise."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from shunter.recipe import disk
from shunter.recipe.artefact import Artefact
from shunter.recipe.plan import Step


class Progress:
    """Tells how a run goes on. `quiet` tells nothing but warnings, on stderr."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stdout
        self._console: Any = None
        if not quiet and self.stream.isatty():
            from rich.console import Console

            self._console = Console(file=self.stream, highlight=False)

    def plan(self, steps: Sequence[Step]) -> None:
        """Before the first job."""
        self._width = max((len(step.node.name) for step in steps), default=0)
        self._total = len(steps)

    def begin(self, number: int, step: Step, attempt: int) -> None:
        """A job's attempt begins."""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._line(number, step.node.name, f"{step.node.kind}{again}: {step.why}", "cyan")

    def reused(self, number: int, step: Step) -> None:
        """A job is finished already."""
        where = step.artefact.path.name if step.artefact else ""
        self._line(number, step.node.name, f"finished before ({where})", "dim")

    def done(self, number: int, artefact: Artefact, seconds: float, peak: int) -> None:
        """A job is published."""
        size = sum(record.bytes for record in artefact.manifest.files)
        text = f"done in {duration(seconds)}, {disk.human(size)}, peak memory {disk.human(peak)}"
        metrics = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in list(artefact.manifest.metrics.items())[:4]
            if isinstance(value, int | float | str) and not isinstance(value, bool)
        )
        self._line(number, artefact.name, f"{text}; {metrics}" if metrics else text, "green")

    def stopped(self, number: int, name: str) -> None:
        """A job has saved and stopped."""
        self._line(number, name, "stopped; the same command continues", "yellow")

    def end(self, made: Mapping[str, Artefact]) -> None:
        """After the last job: where the last artefacts are."""
        used = {record.name for artefact in made.values() for record in artefact.manifest.inputs}
        for name, artefact in made.items():
            if name not in used and not self.quiet:
                print(f"{name}: {artefact.path}", file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """Something that a person should know and that stops nothing."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def _line(self, number: int, name: str, text: str, style: str) -> None:
        if self.quiet:
            return
        total = str(self._total)
        head = f"[{number:>{len(total)}}/{total}] {name:<{self._width}}"
        if self._console is None:
            print(f"{head}  {text}", file=self.stream, flush=True)
        else:
            from rich.text import Text

            self._console.print(Text.assemble((head, style), f"  {text}"), soft_wrap=True)


def duration(seconds: float) -> str:
    """`0.4 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
