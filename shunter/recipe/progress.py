"""A line a job and how far it is: live and coloured on a terminal, plain lines otherwise."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

from shunter.recipe import disk
from shunter.recipe.artefact import Artefact
from shunter.recipe.plan import Step

# Seconds between two plain lines of one job's progress, where there is no terminal to redraw.
PLAIN_EVERY = 10.0


class Progress:
    """Tells how a run goes on. `quiet` tells nothing but warnings, on stderr.

    A run outlives its audience: when the output can no longer be written (its reader left, its disk is
    full, its terminal was closed), that is told once on stderr, and the work goes on without it.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stdout
        self._console: Any = None
        self._live: Any = None  # the line that is redrawn
        self._begun: tuple[float, int] | None = None  # moment and amount of the job's first progress event
        self._said = -math.inf
        if not quiet and self.stream.isatty():
            from rich.console import Console

            self._console = Console(file=self.stream, highlight=False)

    def plan(self, steps: Sequence[Step]) -> None:
        """Before the first job."""
        self._width = max((len(step.node.name) for step in steps), default=0)
        self._total = len(steps)

    def begin(self, number: int, step: Step, attempt: int) -> None:
        """A job's attempt begins."""
        self._number, self._name, self._begun, self._said = number, step.node.name, None, time.perf_counter()
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._line(number, step.node.name, f"{step.node.kind}{again}: {step.why}", "cyan")

    def event(self, event: Mapping[str, Any]) -> None:
        """What a job records while it works: how far it is, and what a person should know at once."""
        if self.quiet:
            return
        if event["event"] == "progress":
            self._progress(event)
        elif event["event"] in TOLD:
            told = TOLD[event["event"]]
            facts = ", ".join(
                str(v) if k == event["event"] else f"{k} {v}" for k, v in event.items() if k in told
            )
            self._line(self._number, self._name, f"{event['event']}: {facts}", "yellow")

    def _progress(self, event: Mapping[str, Any]) -> None:
        now, done, total = time.perf_counter(), int(event["done"]), event.get("total")
        if self._begun is None:
            self._begun = (now, done)
        since, first = self._begun
        parts = [f"{event['unit']} {done}" + (f"/{total}" if total else "")]
        parts += [f"{name} {_short(value)}" for name, value in event.get("shown", {}).items()]
        if total and done > first:
            parts.append(f"{duration((now - since) / (done - first) * (total - done))} left")
        text = "  ".join(parts)
        if self._console is not None:
            from rich.live import Live
            from rich.text import Text

            bar = _bar(done, total) if total else ""
            line = Text(
                f"{' ' * (2 * len(str(self._total)) + 3)} {bar}{text}", overflow="ellipsis", no_wrap=True
            )
            if self._live is None:
                self._live = Live(line, console=self._console, transient=True, auto_refresh=False)
                self._tell(self._live.start)
            if self._live is not None:
                self._tell(lambda: self._live.update(line, refresh=True))
        elif now - self._said >= PLAIN_EVERY:
            self._said = now
            self._line(self._number, self._name, text, "")

    def rest(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            live, self._live = self._live, None
            self._tell(live.stop)

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
            for place, (name, value) in enumerate(artefact.manifest.metrics.items())
            if isinstance(value, int | float | str) and not isinstance(value, bool)
            if place < 4 or (name in LOST and value)
        )
        self._line(number, artefact.name, f"{text}; {metrics}" if metrics else text, "green")
        if told := problems(artefact):
            self.warn(told)

    def stopped(self, number: int, name: str) -> None:
        """A job has saved and stopped."""
        self._line(number, name, "stopped; the same command continues", "yellow")

    def judged(self, number: int, name: str, text: str) -> None:
        """What a job's beginning is worth."""
        self._line(number, name, text, "cyan")

    def end(self, made: Mapping[str, Artefact]) -> None:
        """After the last job: where the last artefacts are."""
        used = {record.name for artefact in made.values() for record in artefact.manifest.inputs}
        for name, artefact in made.items():
            if name not in used and not self.quiet:
                self._print(f"{name}: {artefact.path}")

    def warn(self, text: str) -> None:
        """Something that a person should know and that stops nothing."""
        self.rest()
        with suppress(OSError):
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def _line(self, number: int, name: str, text: str, style: str) -> None:
        if self.quiet:
            return
        self.rest()
        total = str(self._total)
        head = f"[{number:>{len(total)}}/{total}] {name:<{self._width}}"
        if self._console is None:
            self._print(f"{head}  {text}")
        else:
            from rich.text import Text

            line = Text.assemble((head, style), f"  {text}")
            self._tell(lambda: self._console.print(line, soft_wrap=True))

    def _print(self, text: str) -> None:
        self._tell(lambda: print(text, file=self.stream, flush=True))

    def _tell(self, write: Callable[[], object]) -> None:
        """Write, or fall silent for good when that is impossible."""
        if self.quiet:
            return
        try:
            write()
        except OSError as error:
            self.quiet, self._live = True, None
            # What is still buffered would fail again when Python ends.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            reason = os.strerror(error.errno) if error.errno else str(error)
            self.warn(
                f"the output cannot be written any more ({reason}). The run goes on; see `shunter watch`."
            )


# Metrics that are told wherever they stand, unless they are 0: nothing is lost in silence.
LOST = ("dropped", "problems", "overlong", "not_graded")


def problems(artefact: Artefact) -> str:
    """What a job could not read as it stood, in a sentence: how much, the first, where the list is."""
    path = artefact.path / "problems.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(next(lines, "null"))
            count = 1 + sum(1 for _ in lines)
    except (OSError, ValueError):
        return ""
    if not isinstance(first, dict):
        return ""
    place = f"{first.get('file')}:{first['line']}" if first.get("line") else str(first.get("file"))
    what = f"{count} places" if count > 1 else "one place"
    return (
        f"{artefact.name}: {what} could not be read as written, first {place} "
        f"({first.get('problem')}: {first.get('action')}). The list is {path}"
    )


# Events that are told as they happen, with the fields shown.
TOLD: dict[str, tuple[str, ...]] = {
    "resume": ("step",),
    "restart": ("step", "restore"),
    "skip": ("step", "loss", "grad_norm", "rows"),
    "spike": ("step", "z", "causes"),
    "hardware": ("step", "changed"),
    "problem": ("problem",),
    "note": ("note",),
    "saved": ("step", "why"),
    "drift": ("step", "measured", "predicted", "ratio"),
    "replan": ("step", "was", "is", "why"),
}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _bar(done: int, total: int, width: int = 24) -> str:
    full = round(width * min(1.0, done / max(total, 1)))
    return f"{'━' * full}{'╌' * (width - full)}  "


def duration(seconds: float) -> str:
    """`0.4 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
