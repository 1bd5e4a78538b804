"""The held-out documents of a `tokens` artefact, as ids and as text again."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.tokenizer import Tokenizer
from shunter.data.tokens import TokenRows


@dataclass(frozen=True)
class Document:
    """One held-out document. `tokens` are end-of-text, the text's, end-of-text.

    text is None when the tokenizer does not give the text back byte for byte.
    """

    id: str
    tokens: NDArray[np.int64]
    bytes: int
    text: str | None

    @property
    def source(self) -> str:
        """The corpus's source: ids are `source:row`."""
        return self.id.rpartition(":")[0]


class HeldOut:
    """All held-out documents, in memory."""

    def __init__(self, tokens: Path) -> None:
        self.folder = tokens
        self.rows = TokenRows(tokens / "heldout")
        if self.rows.mask is not None:
            raise ShunterError(
                "these rows hold conversations; bits per byte and samples need those of a corpus",
                where=str(tokens),
                mend="Give `tokens` a job that has a `corpus`, and the conversations as `conversations`.",
            )

    @cached_property
    def documents(self) -> list[Document]:
        """Those with text, in the order of the corpus."""
        rows = self.rows
        tokenizer = Tokenizer.load(self.folder / "tokenizer")
        names = (rows.folder / "ids.txt").read_text(encoding="utf-8").split("\n")
        sizes = np.fromfile(rows.folder / "bytes.bin", dtype="<i8").tolist()
        found = []
        for number, (begin, end) in enumerate(zip(rows.borders[:-1], rows.borders[1:], strict=True)):
            ids = np.asarray(rows.tokens[begin:end], dtype=np.int64)
            text: str | None = tokenizer.decode(ids[1:-1].tolist())
            if text is None or len(text.encode()) != sizes[number]:
                text = None
            if sizes[number] > 0:
                found.append(Document(names[number], ids, sizes[number], text))
        return found

    @cached_property
    def seen_in_part(self) -> set[str]:
        """Names of held-out documents that are sections of a text of which other sections are trained on."""
        names = self.folder / "train" / "ids.txt"
        wanted = {parent for document in self.documents if (parent := _parent(document.id))}
        if not wanted or not names.is_file():
            return set()
        with names.open(encoding="utf-8") as file:
            met = {parent for line in file if (parent := _parent(line.rstrip("\n"))) in wanted}
        return {document.id for document in self.documents if _parent(document.id) in met}

    def same_tokenizer(self, tokenizer: Tokenizer) -> bool:
        """True when a model's tokenizer is the one that made these rows."""
        if tokenizer.folder is None:
            return False
        ours = (self.folder / "tokenizer" / "tokenizer.json").read_bytes()
        return (tokenizer.folder / "tokenizer.json").read_bytes() == ours


def _parent(name: str) -> str | None:
    """The text that a section `source:row.part` is of; None of a document that is whole."""
    source, _, row = name.rpartition(":")
    number, dot, _ = row.partition(".")
    return f"{source}:{number}" if dot else None


def choose(count: int, limit: int, *keys: str | int, seed: int) -> list[int]:
    """`limit` of the numbers below `count` (0: all), drawn by the seed, in rising order."""
    if not limit or limit >= count:
        return list(range(count))
    generator = np.random.default_rng(derive_seed(seed, "items", *keys))
    return sorted(generator.permutation(count)[:limit].tolist())


def xz_bits_per_byte(documents: list[Document]) -> float | None:
    """Bits a byte of `xz -9` on the texts one after another, the file's frame included.

    None when a text is not known byte for byte.
    """
    texts = [document.text for document in documents]
    if not texts or any(text is None for text in texts):
        return None
    data = "".join(text for text in texts if text is not None).encode()
    return 8 * len(lzma.compress(data, preset=9)) / len(data)
