"""Corpora that are there already: what near-duplicates must know of their documents, kept unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shunter.data import units
from shunter.data.curation.minhash import EARLIER, NearDuplicates
from shunter.data.curation.pages import Pages
from shunter.recipe.job import JobContext, Stopped

SPLITS = ("train", "heldout")
ROWS = 256  # documents whose arrays are in memory at once


class Earlier:
    """The documents of earlier corpora, numbered EARLIER, EARLIER - 1, ... in the order of reading.

    Their digests lie in `folder`, one file a unit, made once whatever is killed.
    """

    def __init__(
        self, context: JobContext[Any], folders: Sequence[Path], operator: NearDuplicates, folder: Path
    ) -> None:
        self._units: list[units.Unit] = []
        once = units.Once(folder, folders, operator.model_dump())
        self.folder = once.folder
        count = 0
        for place, corpus in enumerate(folders):
            for number, split in enumerate(SPLITS):
                for unit in units.units(corpus / split):
                    make = partial(_digested, context, operator, unit, EARLIER - count)
                    once(f"{place:03}-{number}-{unit.number:06}", make)
                    self._units.append(unit)
                    count += unit.rows
                    context.events.progress(count, None, "documents of earlier corpora")

    def id(self, number: int) -> str:
        """The id of the document that has this number."""
        return str(self._ids[EARLIER - number])

    @cached_property
    def _ids(self) -> pa.ChunkedArray:
        """About 20 bytes a document, read when the first is asked for."""
        batches = (batch for unit in self._units for batch in unit.batches(["id"], 1 << 16))
        return pa.chunked_array([batch.column(0) for batch in batches], pa.string())


def _digested(
    context: JobContext[Any], operator: NearDuplicates, unit: units.Unit, first: int, folder: Path
) -> dict[str, Any]:
    """The keys of one unit, in files as a chain's stages leave them."""
    found: dict[str, list[np.ndarray]] = {}
    for batch in unit.batches(["text"], ROWS):
        if context.control.stop_requested():
            raise Stopped
        pages = Pages(batch.column(0).to_pylist())
        for name, values in operator.keys(pages).items():
            found.setdefault(name, []).append(values)
        pages.forget()
    keys = {name: np.concatenate(parts) for name, parts in found.items()}
    keys["number"] = first - np.arange(unit.rows, dtype=np.int64)
    for name, values in keys.items():
        # A column of a table is read alone later: it must lie in one piece.
        whole = np.asfortranarray(values) if values.ndim == 2 else values
        np.save(folder / f"{name}.npy", whole, allow_pickle=False)
    return {"documents": unit.rows}
