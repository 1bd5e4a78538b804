"""What became of a document on its way through corpora, and which document a packed token is of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shunter.config.errors import ShunterError
from shunter.data.curation.why import asked, unknown
from shunter.recipe.artefact import Artefact
from shunter.recipe.lineage import Lineage
from shunter.recipe.store import Store

ASIDE = ("earlier",)  # corpora that a job looks at and reads no document of


@dataclass(frozen=True)
class Told:
    """What one corpus tells of a document, as `why.asked` has it."""

    corpus: Artefact
    told: dict[str, Any]

    def data(self) -> dict[str, Any]:
        """As JSON values, with the corpus's folder."""
        return {"corpus": self.corpus.path.name, **self.told}


def became(store: Store, document: str, artefact: Artefact | None = None) -> list[Told]:
    """What a corpus tells of a document and then those that it was made of, each once, the nearest first.

    artefact: where to ask first; None: the newest corpus that knows of the document or was made of one that
    does. Raises ShunterError where nobody does.
    """
    if artefact is not None:
        if found := list(_along(store, document, artefact)):
            return found
        raise unknown(document, artefact.path)
    corpora = [each for each in reversed(store.all()) if each.type == "corpus"]
    if not corpora:
        raise ShunterError(
            "no corpus has been made", where=str(store.path), mend="Run a recipe with a `curate` job."
        )
    for each in corpora:
        if found := list(_along(store, document, each)):
            return found
    raise unknown(document, store.artefacts)


def _along(store: Store, document: str, artefact: Artefact) -> Iterator[Told]:
    """Breadth first against the stream of documents."""
    lineage = Lineage(store, artefact)
    queue, seen = [artefact], {artefact.path}
    while queue:
        each = queue.pop(0)
        if each.type == "corpus" and (told := asked(each.path, document)) is not None:
            yield Told(each, told)
        for record in each.manifest.inputs:
            up = lineage.resolve(record)
            if up is not None and record.field not in ASIDE and up.path not in seen:
                seen.add(up.path)
                queue.append(up)


def token(store: Store, rows: Artefact, split: str, row: int, place: int) -> tuple[Any, list[Told]]:
    """Where a token of a packed row comes from (`show.Origin`), and what became of its document.

    Rows of conversations name these; of them no corpus may tell, and then the list is empty.
    """
    from shunter.data.show import origin
    from shunter.data.tokenizer import Tokenizer
    from shunter.data.tokens import TokenRows

    if rows.type != "tokens":
        raise ShunterError(f"{rows.name} has no rows: it is {rows.type}", mend="Name a `tokens` job.")
    tokenizer = Tokenizer.load(rows.path / "tokenizer")
    found = origin(TokenRows(rows.path / split), tokenizer, row, place)
    return found, list(_along(store, found.document, rows))
