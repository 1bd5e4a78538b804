"""The operators that a recipe may name, with their options: what `shunter corpus operators` and the page
docs/operators.md tell. The page is written anew by `python -m shunter.data.curation.catalogue`.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.data.curation.kinds import AnyOperator
from shunter.data.curation.operators import Operator

LONGEST = 90  # characters of a default; of a longer one the number of its entries is told
FITTED = ("by_language", "stopwords_by_language")  # by a `limits` job, mostly; told last
INSIDE = ("kind", "table", "earlier", "normalise")  # what the job sets
NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null"}


@dataclass(frozen=True)
class Option:
    """One option. ours: the operator is published, and this default is not."""

    name: str
    type: str
    default: str
    says: str
    ours: bool


def operators() -> dict[str, type[Operator]]:
    """Kind -> class, in the order in which a recipe's error lists them."""
    kinds: tuple[type[Operator], ...] = get_args(get_args(AnyOperator)[0])
    return {str(kind.model_fields["kind"].default): kind for kind in kinds}


def operator(name: str) -> type[Operator]:
    """One of them. Raises ShunterError for a name that none has."""
    known = operators()
    if name not in known:
        near = nearest(name, known)
        hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(known)}."
        raise ShunterError(f"no operator is called {name!r}", mend=hint)
    return known[name]


def options(kind: type[Operator]) -> list[Option]:
    """What a recipe may set."""
    found = []
    for name, field in sorted(kind.model_fields.items(), key=lambda item: item[0] in FITTED):
        if name not in INSIDE:
            says = " ".join((field.description or "").split())
            found.append(Option(name, typed(field.annotation), _default(field), says, name in kind.ours))
    return found


def about(kind: type[Operator]) -> str:
    """What the operator does, as its class says."""
    return inspect.cleandoc(kind.__doc__ or "")


def briefly(kind: type[Operator]) -> str:
    """The first sentence of it."""
    return " ".join(about(kind).split()).partition(". ")[0].removesuffix(".")


def published(kind: type[Operator]) -> str:
    """Where it is published, and where lists that it reads may be had."""
    told = f"Published: {kind.source or 'by nobody else'}."
    return f"{told} {kind.hint}" if kind.hint else told


def typed(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(typed(part) for part in inner)
    if origin is list:
        return f"list of {_many(inner[0])}"
    if origin is dict:
        return f"map of {typed(inner[0])} to {typed(inner[1])}"
    if origin is not None and inner:  # Annotated
        return typed(inner[0])
    return "a source" if annotation.__name__ == "SourceConfig" else str(annotation.__name__)


def _many(annotation: Any) -> str:
    told = typed(annotation)
    return {"text": "texts", "whole number": "whole numbers", "a source": "sources"}.get(told, told)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.default
    told = json.dumps(value, ensure_ascii=False)
    if len(told) > LONGEST and isinstance(value, list | dict):
        return f"{len(value)} entries"
    return told


def page() -> str:
    """docs/operators.md."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield from (
        "# Operators and their options",
        "",
        "What a `curate` job may name under `operators` ([curate.md](curate.md)). Defaults are those of the",
        'publication that an operator names, but for those marked "ours", for which there is none. `null`',
        "turns a limit off. `shunter corpus operators KIND` prints the same in a terminal.",
    )
    for name, kind in operators().items():
        yield from ("", f"## {name}", "", about(kind), "", published(kind))
        if rows := options(kind):
            yield from ("", "| option | takes | default | |", "| --- | --- | --- | --- |")
        for row in rows:
            cells = (
                f"`{row.name}`",
                row.type,
                f"`{row.default}`" + (" (ours)" if row.ours else ""),
                row.says,
            )
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(page())
