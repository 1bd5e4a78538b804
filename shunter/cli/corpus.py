"""`shunter corpus why ID`, `token ROW:PLACE`, `funnel` and `operators [KIND]`: what became of documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shunter.jobs.became import Place, Told
    from shunter.recipe.store import Store

QUESTIONS = ("why", "token", "funnel", "operators")


def corpus(
    question: Annotated[
        str,
        typer.Argument(
            help="why: what became of a document; token: which one a packed token is of; funnel: what each "
            "operator let through; operators: what a `curate` job may do."
        ),
    ],
    about: Annotated[
        str, typer.Argument(help="A document's id, SOURCE:ROW; of a token ROW:PLACE, from 0; an operator.")
    ] = "",
    artefact: Annotated[
        str,
        typer.Option("--in", help="Where to look: a job's name, NAME-ID or a folder; default: the newest."),
    ] = "",
    heldout: Annotated[bool, typer.Option("--heldout", help="token: of the held-out rows.")] = False,
    store: Annotated[str, typer.Option(envvar="SHUNTER_STORE", help="The artefact store.")] = "shunter-store",
    json_: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Tell why a document was dropped, by which operator and value, or where it stands; also of a token."""
    from shunter.config.errors import ShunterError
    from shunter.recipe.store import Store

    if question not in QUESTIONS:
        raise ShunterError(f"no such question: {question!r}", mend=f"Ask {', '.join(QUESTIONS)}.")
    if question == "operators":
        _operators(about, json_)
    elif question == "funnel":
        _funnel(Store(store), about or artefact, json_)
    elif not about:
        asked = "why SOURCE:ROW" if question == "why" else "token ROW:PLACE"
        raise ShunterError("nothing is asked about", mend=f"Write `shunter corpus {asked}`.")
    elif question == "why":
        _why(Store(store), about, artefact, json_)
    else:
        _token(Store(store), about, artefact, "heldout" if heldout else "train", json_)


def _why(store: Store, document: str, ref: str, json_: bool) -> None:
    from shunter.config.errors import ShunterError
    from shunter.jobs.became import became

    artefact = store.get(ref) if ref else None
    if artefact is not None and artefact.type != "corpus":
        raise ShunterError(f"{artefact.name} is no corpus but {artefact.type}", mend="Name a `curate` job.")
    told = became(store, document, artefact)
    if json_:
        first, *others = (each.data() for each in told)
        _print({**first, "before": others})
        return
    asked = artefact or next(each for each in reversed(store.all()) if each.type == "corpus")
    plain = len(told) == 1 and asked.path == told[0].corpus.path
    typer.echo("\n".join(sentences(told, plain=plain)))


def _funnel(store: Store, ref: str, json_: bool) -> None:
    from shunter.config.errors import ShunterError
    from shunter.report.contents import funnel

    corpora = (store.get(ref),) if ref else reversed(store.all())
    for artefact in corpora:
        path = artefact.path / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if artefact.type == "corpus" and summary.get("operators"):
            break
    else:
        what = f"{ref} is no corpus of a chain of operators" if ref else "no chain of operators has been run"
        raise ShunterError(what, where=str(store.path), mend="Run a `curate` job with `operators`.")
    if json_:
        keys = ("read", "train", "heldout", "dropped", "operators", "decontamination", "languages")
        _print({key: summary[key] for key in keys if key in summary})
        return
    from shunter.cli.tables import show_tables

    show_tables([(each.title, each.head, each.rows) for each in funnel(artefact.path, summary, [])])


def _token(store: Store, about: str, ref: str, split: str, json_: bool) -> None:
    from shunter.config.errors import ShunterError
    from shunter.jobs.became import token

    row, _, place = about.partition(":")
    if not (row.isdecimal() and place.isdecimal()):
        raise ShunterError(f"no place of a token: {about!r}", mend="Write ROW:PLACE, such as 5:17.")
    newest = next((each for each in reversed(store.all()) if each.type == "tokens"), None)
    rows = store.get(ref) if ref else newest
    if rows is None:
        what = "no rows have been made"
        raise ShunterError(what, where=str(store.path), mend="Run a recipe with a `tokens` job.")
    origin, told = token(store, rows, split, int(row), int(place))
    if json_:
        _print({**vars(origin), "before": [each.data() for each in told]})
        return
    low, high = origin.chars
    typer.echo(
        f"row {row}, token {place}: {origin.text!r}, token {origin.index} of the {origin.of} of "
        f"{origin.document}, characters {low} to {high}"
    )
    for line in sentences(told, plain=False):
        typer.echo(line)


def _operators(name: str, json_: bool) -> None:
    from shunter.data.curation import catalogue

    if not name:
        kinds = catalogue.operators()
        if json_:
            _print({kind: catalogue.briefly(each) for kind, each in kinds.items()})
            return
        width = max(map(len, kinds))
        for kind, each in kinds.items():
            typer.echo(f"{kind:<{width}}  {catalogue.briefly(each)}")
        return
    chosen = catalogue.operator(name)
    rows = catalogue.options(chosen)
    if json_:
        _print({"kind": name, "published": chosen.source, "options": [vars(row) for row in rows]})
        return
    typer.echo(f"{name}: {catalogue.about(chosen)}\n{catalogue.published(chosen)}\n")
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        ours = ", ours" if row.ours else ""
        typer.echo(f"  {row.name:<{width}}  {row.says} ({row.type}; {row.default}{ours})")


def _print(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False))


def sentences(told: Sequence[Told], plain: bool) -> list[str]:
    """A line for each document or part that a corpus tells of. plain: the corpus is not named."""
    found = []
    for each in told:
        # A document that was taken apart has no state of its own; one that was joined has, and their ids.
        parts = [each.told] if "state" in each.told else each.told["parts"]
        lines = [sentence(part) for part in parts]
        if each.place is not None:
            lines[-1] += f"; {_where(each.place)}"
        found += [line if plain else f"in {each.corpus.path.name}: {line}" for line in lines]
    return found


def _where(place: Place) -> str:
    """Which part of a joined document a token is of."""
    if place.document is None:
        return "the text has been changed since it was joined, so any of its parts may have the token"
    return f"the token is characters {place.chars[0]} to {place.chars[1]} of {place.document}"


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
            and value not in ("", None)
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
