"""What became of a document on its way through corpora, and which document a packed token is of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.data.curation.why import asked, texts, unknown
from shunter.jobs.sites import BETWEEN
from shunter.recipe.artefact import Artefact
from shunter.recipe.lineage import Lineage
from shunter.recipe.store import Store

CARRY = ("corpus", "corpora")  # inputs whose documents pass through a job; others it only looks at


@dataclass(frozen=True)
class Told:
    """What one corpus tells of a document, as `why.asked` has it.

    place: of a token's document what stands upstream for it, where it was joined of several here.
    """

    corpus: Artefact
    told: dict[str, Any]
    place: Place | None = None

    def data(self) -> dict[str, Any]:
        """As JSON values, with the corpus's folder."""
        place = {"token": vars(self.place)} if self.place else {}
        return {"corpus": self.corpus.path.name, **self.told, **place}


@dataclass(frozen=True)
class Place:
    """Where in a joined document a token stands: in which of its parts, [begin, end) in that one's text.

    What stands between two parts counts to the end of the one before. document: None where the text has been
    changed since it was joined, so that it cannot be said.
    """

    document: str | None
    chars: tuple[int, int] = (0, 0)


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
    seen: set[Path] = set()  # what an earlier start has passed knows nothing of it
    for each in corpora:
        if each.path not in seen and (found := list(_along(store, document, each, seen))):
            return found
    raise unknown(document, store.artefacts)


def _along(store: Store, document: str, artefact: Artefact, seen: set[Path] | None = None) -> Iterator[Told]:
    """Breadth first against the stream of documents. seen: what need not be asked; what is asked is added."""
    lineage = Lineage(store, artefact)
    seen = set() if seen is None else seen
    queue = [artefact]
    seen.add(artefact.path)
    while queue:
        each = queue.pop(0)
        if each.type == "corpus" and (told := asked(each.path, document)) is not None:
            yield Told(each, told)
        for up in _above(lineage, each):
            if up.path not in seen:
                seen.add(up.path)
                queue.append(up)


def _above(lineage: Lineage, artefact: Artefact) -> list[Artefact]:
    """What a job read its documents from; of rows also the conversations, which have documents' ids."""
    found = [
        lineage.resolve(record)
        for record in artefact.manifest.inputs
        if record.field.rpartition(".")[2] in CARRY
        or (artefact.type == "tokens" and record.field == "conversations")
    ]
    return [each for each in found if each is not None]


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
    return found, list(_parted(store, found.document, rows, found.chars, None))


def _parted(
    store: Store, document: str, artefact: Artefact, chars: tuple[int, int], text: str | None
) -> Iterator[Told]:
    """As `_along`, and where a document was joined of several, on with the one that has these characters.

    text: what they count in; None: that of the first corpus. If the joined text is another one, all parts are
    told of.
    """
    for each in _along(store, document, artefact):
        kept = each.told.get("state") == "kept"
        if text is None:
            text = texts(each.corpus.path, [document]).get(document)
        names = each.told.get("parts") if kept and each.corpus.manifest.kind == "by-site" else None
        if names is None or len(names) < 2:
            yield each
            continue
        sources = _above(Lineage(store, each.corpus), each.corpus)
        parts = {name: found for up in sources for name, found in texts(up.path, names).items()}
        found = Place(None)
        if set(names) == set(parts) and text == BETWEEN.join(parts[name] for name in names):
            found = within(names, [len(parts[name]) for name in names], chars)
        yield Told(each.corpus, each.told, found)
        for name in names if found.document is None else [found.document]:
            for up in sources:
                yield from _parted(store, name, up, found.chars, parts.get(name))
        return


def within(names: Sequence[str], lengths: Sequence[int], chars: tuple[int, int]) -> Place:
    """In which of texts of these lengths, joined by BETWEEN, characters begin, and where in it they are."""
    begin = 0
    for name, length in zip(names, lengths, strict=True):
        if chars[0] < begin + length + len(BETWEEN) or name == names[-1]:
            break
        begin += length + len(BETWEEN)
    low, high = (min(each - begin, length) for each in chars)
    return Place(name, (low, high))
