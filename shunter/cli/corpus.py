"""`shunter corpus why ID`: what became of one document."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def corpus(
    question: Annotated[str, typer.Argument(help="why: what became of a document.")],
    document: Annotated[str, typer.Argument(help="The document's id, SOURCE:ROW.")],
    artefact: Annotated[
        str, typer.Option("--in", help="The corpus: a job's name, NAME-ID or a folder; default: the newest.")
    ] = "",
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    json_: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Tell why a document was dropped, by which operator and value, or where it stands."""
    from shunter.config.errors import ShunterError
    from shunter.data.curation.why import why
    from shunter.recipe.artefact import Artefact
    from shunter.recipe.store import Store

    if question != "why":
        raise ShunterError(f"no such question: {question!r}", mend="Ask `shunter corpus why SOURCE:ROW`.")
    kept = Store(store)
    chosen: Artefact | None
    if artefact:
        chosen = kept.get(artefact)
    else:
        chosen = next((each for each in reversed(kept.all()) if each.type == "corpus"), None)
        if chosen is None:
            raise ShunterError(
                "no corpus has been made", where=store, mend="Run a recipe with a `curate` job."
            )
    if chosen.type != "corpus":
        raise ShunterError(f"{chosen.name} is no corpus but {chosen.type}", mend="Name a `curate` job.")
    told = why(chosen.path, document)
    if json_:
        typer.echo(json.dumps(told, indent=1, ensure_ascii=False))
        return
    for part in told.get("parts", [told]):
        typer.echo(sentence(part))


def _holds(part: dict[str, Any]) -> str:
    """What of an evaluation set a document has."""
    told = f"{part['covered']:.0%} of {part['item']}"
    if others := part.get("other_items"):
        told += f", and runs of {others} others"
    for match in part["matches"]:
        begin, end = match["chars"]
        told += f"; characters {begin} to {end}, {match['runs']} runs: {match['text']!r}"
    return told


def sentence(part: dict[str, Any]) -> str:
    """One document's answer in words."""
    if part["state"] == "kept":
        told = ", ".join(
            f"{name} {value}"
            for name, value in part.items()
            if name not in ("id", "state", "split", "place", "text", "source", "row")
        )
        return f"{part['id']}: kept, document {part['place']} of {part['split']}" + (
            f" ({told})" if told else ""
        )
    text = f"{part['id']}: dropped by {part['operator']}: {part['reason']}"
    if "value" in part:
        text += (
            f"; {part['value']} where the limit is {part['limit']}"
            if "of" not in part and part["value"] != part["limit"]
            else ""
        )
    if "licence_rule" in part:
        text += f" ({part['licence_rule']})"
    for name in ("item", "error", "word"):
        if name in part:
            text += f" ({_holds(part) if name == 'item' else part[name]})"
    if "of" in part:
        text += f" of {part['of']}"
        text += f", in a cluster of {part['value']:.0f}" if "value" in part else ""
    return text
