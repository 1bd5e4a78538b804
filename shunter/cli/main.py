"""The entry point: finds the verb, runs it, and turns how it ends into an exit code.

A verb's module is loaded only when it is invoked, so that `shunter --help` imports nothing and a
broken optional part cannot break the others.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import shunter
from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest

# Exit codes. A run that is stopped by a signal ends with 128 plus its number, as shells expect.
OK, BUG, USER_ERROR, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
SPIN = "10000"  # rounds that an idle worker thread looks for work before it sleeps; see bench/spin.py

# Group -> verb -> ("module:function" below shunter.cli, one line of help).
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Run a recipe": {
        "init": ("init:init", "Write a recipe for your own files."),
        "doctor": ("doctor:doctor", "Check machine, store and recipe before a run."),
        "run": ("run:run", "Run a recipe's jobs, or continue where they were stopped."),
        "launch": ("launch:launch", "Run a recipe on several machines: ssh or SLURM."),
        "watch": ("watch:watch", "Attach to a run; ask it to save or to stop."),
        "status": ("status:status", "Show which jobs are done, running or to do."),
        "plan": ("plan:plan", "Find the fastest layout of a model on a cluster."),
        "calibrate": ("calibrate:calibrate", "Fit the cost model to runs that had a plan."),
        "probe": ("probe:probe", "Measure this machine: devices and links."),
        "tune": ("tune:tune", "Find the choices a job runs best with, by trials."),
        "layout": ("layout:layout", "Show who holds what over processes, and what is sent."),
        "show-batch": ("show_batch:show_batch", "Show the rows that a job trains on."),
        "schema": ("schema:schema", "Write the JSON Schema of recipes, for editors."),
    },
    "Look at results": {
        "report": ("report:report", "Write a run's report as one HTML file."),
        "compare": ("compare:compare", "Compare two runs: configuration and scores."),
        "lineage": ("lineage:lineage", "Show what an artefact was made from."),
        "gc": ("gc:gc", "Remove old artefacts to keep a disk budget."),
    },
    "Use a model": {
        "chat": ("chat:chat", "Talk to a model in the terminal."),
        "export": ("export:export", "Write a model as a Hugging Face folder."),
    },
    "Schedules": {
        "schedules": ("schedules:schedules", "List the schedules: idle time, span, memory."),
        "simulate": ("simulate:simulate", "Simulate and draw a schedule."),
        "synthesize": ("synthesize:synthesize", "Find a schedule for given costs and memory."),
    },
    "Papers and faults": {
        "papers": ("papers:papers", "List the papers known, with their state."),
        "reproduce": ("reproduce:reproduce", "Measure a paper's claim against its baseline."),
        "inject": ("inject:inject", "Run a recipe with a fault at a chosen point."),
    },
}
VERBS = {verb: entry for group in GROUPS.values() for verb, entry in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (the console script hands it to `sys.exit`).

    0 done, 1 a bug (with its traceback), 2 a mistake of the person or a condition of the machine (one
    line a mistake on stderr), 3 a paper's claim does not hold, 129, 130 and 143 stopped by a signal.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _share_cores()
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except ShunterError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`shunter status | head`). Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}the disk is full. Free some space and run the same command again.")


def _share_cores() -> None:
    """Let idle worker threads sleep soon, where the person has not chosen otherwise.

    GNU OpenMP's workers spin for milliseconds at each barrier. Where another process wants a core too, that
    makes a training six times slower; a shorter spin costs a free machine nothing that can be measured, a
    much shorter one a quarter of its speed (`bench/spin.py`). Read when torch is loaded.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = SPIN


def load(verb: str) -> Callable[..., Any]:
    """The function of a verb; its module is imported now."""
    module, _, function = VERBS[verb][0].partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(f"shunter.cli.{module}"), function)
    return loaded


def help_text() -> str:
    """What `shunter --help` prints."""
    lines = [shunter.__doc__.strip() if shunter.__doc__ else "", "", "Usage: shunter VERB ...", ""]
    for group, verbs in GROUPS.items():
        lines += [f"{group}:", *(f"  {verb:<12}{text}" for verb, (_, text) in verbs.items()), ""]
    lines += ["shunter VERB --help shows a verb's options, shunter --version the version."]
    return "\n".join(lines)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("--help", "-h") or args == ["help"]:
        print(help_text())
        return OK
    if args[0] == "--version":
        print(f"shunter {shunter.__version__}")
        return OK
    if args[0] == "help":
        args = [*args[1:], "--help"]
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = nearest(verb, [*VERBS, "--help", "--version"])
        kind = "option" if verb.startswith("-") else "verb"
        mend = f"Did you mean {near!r}?" if near else "`shunter --help` lists the verbs."
        raise ShunterError(f"no such {kind}: {verb!r}", mend=mend)
    if os.environ.get("SHUNTER_INJECT"):
        importlib.import_module("shunter.launch.inject").install_from_environment()
    return _invoke(verb, rest)


def _invoke(verb: str, args: list[str]) -> int:
    """Parse a verb's options with typer and call it."""
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name=verb)(load(verb))
    command: Any = typer.main.get_command(app)
    # typer carries its own click or imports it, by version: its public exceptions lead to the base.
    click_errors: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        with command.make_context(f"shunter {verb}", list(args)) as context:
            command.invoke(context)
    except typer.Exit as end:
        return int(end.exit_code)
    except typer.Abort:
        return INTERRUPTED
    except click_errors as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        mend = f"`shunter {verb} --help` shows its options."
        raise ShunterError(message[:1].lower() + message[1:], where=f"shunter {verb}", mend=mend) from None
    return OK


def _complain(text: str) -> int:
    if "RANK" in os.environ and importlib.import_module("shunter.launch.place").is_follower():
        return USER_ERROR  # under torchrun the first process says it
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
