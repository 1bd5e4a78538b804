"""`shunter reproduce SLUG`: measure a paper's claim against its baseline, here and now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    slug: Annotated[str, typer.Argument(help="The paper, as `shunter papers` names it.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; at least three.")] = "",
    store: Annotated[
        str, typer.Option(envvar="SHUNTER_STORE", help="Artefact store for the arms' jobs.")
    ] = "",
    record: Annotated[
        bool, typer.Option("--record", help="Keep the result as the paper's recorded result.")
    ] = False,
    short: Annotated[
        bool, typer.Option("--short", help="A quick form that proves the machinery, not the claim.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Re-measure a paper's headline claim. Exit code 0: it holds, 3: it does not, 2: bad input."""
    from shunter.config.errors import ShunterError
    from shunter.papers import harness

    if record and short:
        raise ShunterError("--short proves nothing worth recording", mend="Leave out --short or --record.")
    result = harness.reproduce(
        slug,
        seeds=harness.parse_seeds(seeds),
        store=Path(store or harness.DEFAULT_STORE),
        short=short,
        quiet=as_json,
    )
    if record:
        harness.record(result)
    if as_json:
        typer.echo(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        harness.show(result)
    raise typer.Exit(0 if result["holds"] else 3)
