"""Documents of other jobs' corpora as input of a chain: their ids, parts, addresses and other columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data.meter import Meter
from shunter.data.sources import Document, Problem
from shunter.jobs.curate_names import NAMES, id_of
from shunter.recipe.artefact import Artefact

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Given:
    """A document with what was known of it before: the part of a document that it is, or -1; the place of
    its split, or -1; its columns as JSON, or ""."""

    document: Document
    part: int = -1
    split: int = -1
    carried: str = ""


class Corpora:
    """The corpora that a job reads, in order.

    facts: their columns beside those that every corpus has, in the order in which they are met. Columns of
    numbers, truth values and strings are carried over; `problems` tells of others.
    """

    def __init__(self, artefacts: Sequence[Artefact]) -> None:
        self.artefacts = artefacts
        self.facts: dict[str, pa.DataType] = {}
        self.problems: list[Problem] = []
        for artefact in artefacts:
            for split in SPLITS:
                for name, kind in corpus.facts(artefact.path / split).items():
                    self._take(name, kind, artefact)

    def _take(self, name: str, kind: pa.DataType, artefact: Artefact) -> None:
        plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)
        if not any(is_kind(kind) for is_kind in plain):
            told = f"column {name!r} is not carried over: {kind}"
            problem = Problem(artefact.manifest.name, None, told, "skipped")
            self.problems += [problem] if problem not in self.problems else []
            return
        known = self.facts.setdefault(name, kind)
        try:
            both = pa.unify_schemas(
                [pa.schema([(name, known)]), pa.schema([(name, kind)])], promote_options="permissive"
            )
        except pa.ArrowTypeError:
            raise ShunterError(
                f"column {name!r} is {kind} in {artefact.manifest.name} and {known} in a corpus before it",
                mend="Read them in two jobs, or give one column another name.",
            ) from None
        self.facts[name] = both.field(name).type

    def licences(self) -> Iterator[tuple[str, str | None, str]]:
        """Source, licence and corpus, for each source that a corpus tells of."""
        for artefact in self.artefacts:
            path = artefact.path / "summary.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            for label, told in known.get("sources", {}).items():
                yield label, told.get("licence"), artefact.manifest.name

    def bytes(self) -> int:
        """Of the files that `documents` reads."""
        places = (each.path / split for each in self.artefacts for split in SPLITS)
        return sum(path.stat().st_size for place in places for path in place.glob("*.parquet"))

    def documents(self, without: set[str], meter: Meter | None = None) -> Iterator[tuple[str, Given]]:
        """The name of the corpus and a document: train part before held-out part.

        They stay in the part that they are in; of a corpus that holds nothing out they are parted anew.
        without: columns that the job makes itself. meter: is told how far the files are read.
        """
        carried = [name for name in self.facts if name not in without and name != "url"]
        for artefact in self.artefacts:
            parted = any(True for _ in corpus.rows(artefact.path / "heldout"))
            for place, split in enumerate(SPLITS):
                for row in corpus.rows(artefact.path / split, meter):
                    facts = {name: row[name] for name in carried if row.get(name) is not None}
                    told = json.dumps(facts, ensure_ascii=False) if facts else ""
                    number, part = _place(row, artefact)
                    document = Document(
                        str(row["source"]), number, str(row["text"]), str(row.get("url") or "")
                    )
                    yield artefact.manifest.name, Given(document, part, place if parted else -1, told)


def _place(row: Mapping[str, Any], artefact: Artefact) -> tuple[int, int]:
    """Row and part of an id."""
    number, _, part = str(row["id"]).removeprefix(f"{row['source']}:").partition(".")
    if not number.isdecimal() or (part and not part.isdecimal()):
        raise ShunterError(
            f"the id {row['id']!r} is not SOURCE:ROW or SOURCE:ROW.PART", where=str(artefact.path)
        )
    return int(number), int(part or -1)


def twice(names: np.ndarray, labels: Sequence[str]) -> tuple[str, list[int]] | None:
    """An id that two documents have, and their numbers; or None. Memory: about 40 bytes a document."""
    order = np.lexsort([names[key] for key in ("part", "row", "source")])
    key = np.ascontiguousarray(names[list(NAMES.names or ())[:3]][order])
    same = np.flatnonzero(key[1:] == key[:-1])
    if not len(same):
        return None
    numbers = order[same[0] : same[0] + 2].tolist()
    return id_of(names[numbers[0]], labels), numbers
