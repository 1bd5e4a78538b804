"""`shunter chat MODEL`: talk to a model in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer


def chat(
    model: Annotated[str, typer.Argument(help="A job's name, NAME-ID, or a model's folder.")],
    system: Annotated[str | None, typer.Option(help="A system message before the conversation.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest of this probability.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue plain text; no chat template.")] = False,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
) -> None:
    """Talk to a model. /reset forgets the conversation, /quit leaves, Ctrl-C stops an answer."""
    import sys

    from shunter.jobs import talking

    talking.talk(
        store,
        model,
        {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
        },
        system=system,
        seed=seed,
        raw=raw,
        lines=sys.stdin,
        out=sys.stdout,
    )
