"""`shunter launch RECIPE`: run a recipe on several machines, by ssh or as a batch job of SLURM."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time as clock
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shunter.config.errors import ShunterError

if TYPE_CHECKING:
    from shunter.launch.place import Place
    from shunter.launch.ssh import Launch
    from shunter.recipe.graph import Graph

TAIL = 30  # lines of a log that are shown when nobody said what was wrong


def launch(
    recipe: Annotated[Path, typer.Argument(help="The recipe file, under the same path on all machines.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it, as for shunter run.")] = None,
    hosts: Annotated[
        str | None, typer.Option(help="Start by ssh on these: a file, a host a line, or names such as a,b.")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write a batch script for SLURM.")] = False,
    per_node: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes on each machine; default: what the recipe's jobs take, shared evenly."
        ),
    ] = None,
    first: Annotated[str | None, typer.Option("--from", help="As for shunter run.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="As for shunter run.")] = None,
    redo: Annotated[list[str] | None, typer.Option("--redo", help="As for shunter run. Repeatable.")] = None,
    store: Annotated[
        str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store, which all machines share.")
    ] = "shunter-store",
    check: Annotated[
        bool, typer.Option("--check", help="Only compare the machines and measure the links between them.")
    ] = False,
    folder: Annotated[
        str | None, typer.Option("--dir", help="The folder to start in on each machine; default: this one.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Python on each machine; default: this one's path.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for all processes. Repeatable.")] = None,
    address: Annotated[
        str | None, typer.Option(help="--hosts: where all machines reach the first; default: its name.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="--hosts: a free port of the first.")] = 29500,
    logs: Annotated[Path | None, typer.Option(help="--hosts: folder for what each machine says.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="--slurm: machines.")] = 2,
    time: Annotated[str | None, typer.Option(help="--slurm: time of one job, such as 4:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="--slurm: partition.")] = None,
    account: Annotated[str | None, typer.Option(help="--slurm: account.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="--slurm: GPUs of each machine.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="--slurm: the script to write.")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="--slurm: hand the script to sbatch.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands; start nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="With --check: print the report as JSON.")] = False,
) -> None:
    """Run a recipe on several machines, by ssh or SLURM. Stopped or killed, the same command continues."""
    from shunter.jobs.registry import KINDS
    from shunter.launch.place import Place
    from shunter.launch.ssh import read_hosts, variables_of
    from shunter.recipe.graph import load_recipe

    place = Place.of(os.environ)
    if place is not None:
        _member(place, recipe, overrides or [], first, last, store, check, json_)
        return
    if (hosts is not None) == slurm:
        raise ShunterError("where to run is not clear", mend="Give either --hosts or --slurm.")
    graph = load_recipe(recipe, overrides or [], KINDS)
    selected = graph.select(first, last)
    words = ["launch" if check else "run", str(recipe), *(overrides or []), "--store", store]
    for option, value in (("--from", first), ("--to", last), *(("--redo", name) for name in redo or [])):
        if value is not None and not (check and option == "--redo"):
            words += [option, value]
    words += ["--check"] * check + ["--json"] * (check and json_)
    variables = variables_of(env or [])
    folder, python = folder or str(Path.cwd()), python or sys.executable
    if slurm:
        each = _per_node(per_node, [None] * nodes, graph, selected)
        _slurm(
            graph.name, words, folder, python, nodes, each, time, partition, account, gpus, variables,
            out or Path(f"{graph.name}.sbatch"), submit, dry_run,
        )  # fmt: skip
        return
    found = read_hosts(str(hosts))
    from shunter.launch.ssh import Launch

    each = _per_node(per_node, [host.processes for host in found], graph, selected)
    _ssh(
        Launch(found, words, folder, python, each, address or found[0].address, port, variables),
        logs or Path(f"{graph.name}-{clock.strftime('%Y%m%d-%H%M%S')}.logs"), dry_run, raw=check,
    )  # fmt: skip


def _member(
    place: Place,
    recipe: Path,
    overrides: Sequence[str],
    first: str | None,
    last: str | None,
    store: str,
    check: bool,
    as_json: bool,
) -> None:
    """Under torchrun: one of those that are checked."""
    if not check:
        raise ShunterError("torchrun has started this already", mend="Use shunter run, or launch --check.")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from shunter.launch import crew

    if place.rank:
        raise typer.Exit(crew.attend(place))
    with crew.leading(place) as others:
        from shunter.jobs import together
        from shunter.jobs.registry import KINDS
        from shunter.recipe.graph import load_recipe
        from shunter.recipe.store import Store

        graph = load_recipe(recipe, overrides, KINDS)
        shared = Store(str(Path(store).absolute()))
        found = together.examine(others, graph, shared, graph.select(first, last))
        if as_json:
            typer.echo(json.dumps(found.data(), indent=1))
        else:
            from shunter.cli.machines import show

            show(found)
        if not found.ok:
            raise typer.Exit(2)


def _per_node(given: int | None, slots: Sequence[int | None], graph: Graph, selected: Sequence[str]) -> int:
    """Processes of a machine that does not say so itself."""
    from shunter.jobs import ranks, together

    count = len(slots)
    if given is None:
        most = max(ranks.needed(graph, selected).values(), default=1)
        given = -(-most // count)
    together.enough(sum(each or given for each in slots), graph, selected)
    return given


def _slurm(
    name: str,
    words: Sequence[str],
    folder: str,
    python: str,
    nodes: int,
    per_node: int,
    time: str | None,
    partition: str | None,
    account: str | None,
    gpus: int | None,
    variables: dict[str, str],
    out: Path,
    submit: bool,
    dry_run: bool,
) -> None:
    from shunter.launch import slurm

    batch = slurm.Batch(
        name, words, folder, python, nodes, per_node, time, partition, account, gpus, variables
    )
    text = batch.script()
    if dry_run:
        typer.echo(text, nl=False)
        return
    out.write_text(text, encoding="utf-8")
    slurm.check(out)
    typer.echo(
        slurm.submit(out) if submit else f"{out}: hand it to SLURM with: sbatch {shlex.quote(str(out))}"
    )


def _ssh(plan: Launch, logs: Path, dry_run: bool, *, raw: bool) -> None:
    """raw: what the first machine prints is the result itself, and no summary follows when all went well."""
    from shunter.launch import ssh

    if dry_run:
        for command in plan.commands():
            typer.echo(shlex.join(command))
        return
    if not ssh.found():
        raise ShunterError("ssh is not on this machine", mend="Install an OpenSSH client.")

    told = False

    def tell(line: str, errors: bool) -> None:
        nonlocal told
        # torchrun's own words stand in the log.
        if not errors or line.startswith((ssh.ERROR, "warning: ", "stopping: ")):
            told = told or line.startswith(ssh.ERROR)
            typer.echo(line, err=errors)

    ended = ssh.start(plan, logs, tell)
    code = next((each.code for each in ended if each.code), 0)
    if code or not raw:
        from shunter.cli.tables import show_hosts

        show_hosts(ended)
    for each in ended:
        if each.code == ssh.UNREACHABLE:
            raise ShunterError(
                f"ssh did not reach {each.host}, or lost it ({each.last or 'ssh says nothing'})",
                mend=f"Try: ssh {each.host} true. It must work without a question; then start again.",
            )
    if code == 1 and not told:
        bad = next(each for each in ended if each.code == 1)
        lines = bad.log.read_text(encoding="utf-8", errors="replace").splitlines()
        typer.echo("\n".join(["", *lines[-TAIL:]]), err=True)
    if code:
        raise typer.Exit(code)
