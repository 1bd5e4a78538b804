"""Token files: memory-mapped ids with document borders, a loss mask and a packing plan.

A folder holds index.json (format, dtype, counts, digests), tokens.bin (uint16 or uint32), documents.bin
(int64 borders, one more than documents), bytes.bin (int64 bytes of text a document), spans.bin (the
packing plan, see `packing`), mask.bin (uint8, only where not every token is a target) and ids.txt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shunter.config.errors import ShunterError
from shunter.data import packing

FORMAT = 1
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens.

    tokens    int64 [B, T]  ids; padding holds the end-of-text id
    targets   int64 [B, T]  the next token of the same document, IGNORE where there is no loss
    segments  int32 [B, T]  number of the document inside the row, -1 on padding
    positions int64 [B, T]  from 0 in each segment
    row_ids   int64 [B]     rows of the token file
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    segments: NDArray[np.int32]
    positions: NDArray[np.int64]
    row_ids: NDArray[np.int64]

    @property
    def num_valid(self) -> int:
        """Targets that count in the loss."""
        return int((self.targets != IGNORE).sum())


class TokenWriter:
    """Writes a token folder as a stream; memory grows with documents, not with tokens."""

    def __init__(self, folder: Path, *, vocab_size: int, masked: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.vocab_size, self.masked = folder, vocab_size, masked
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.lengths: list[int] = []
        self.text_bytes: list[int] = []
        self.digests: dict[str, str] = {}
        self._files = {name: (folder / name).open("wb") for name in self._streams()}
        self._hashes = {name: hashlib.sha256() for name in self._files}

    def append(
        self,
        documents: Sequence[NDArray[Any]],
        ids: Iterable[str],
        text_bytes: Iterable[int],
        masks: Sequence[NDArray[np.bool_]] | None = None,
    ) -> None:
        """Add documents: their token ids [n] each, names, bytes of text, and masks [n] if masked."""
        if not documents:
            return
        block = np.concatenate(documents)
        if len(block) and int(block.max()) >= self.vocab_size:
            raise ShunterError(f"token id {int(block.max())} is outside the vocabulary of {self.vocab_size}")
        self.lengths += [len(document) for document in documents]
        self.text_bytes += text_bytes
        self._put("tokens.bin", block.astype(self.dtype).tobytes())
        self._put("ids.txt", "".join(f"{name}\n" for name in ids).encode())
        if self.masked:
            assert masks is not None
            self._put("mask.bin", np.concatenate(masks).astype(np.uint8).tobytes())

    def finish(
        self,
        row_length: int,
        packer: Literal["concat", "best_fit"],
        overlong: packing.Overlong = "split",
        pad: int = 0,
    ) -> dict[str, Any]:
        """Plan the rows, write the index last, and return it."""
        lengths = np.asarray(self.lengths, dtype=np.int64)
        long = 0
        if packer == "concat":
            spans = packing.concat(lengths, row_length)
        else:
            spans, long = packing.best_fit(lengths, row_length, overlong)
            if long and overlong == "error":
                raise ShunterError(
                    f"{long} examples are longer than a row of {row_length} tokens",
                    mend="Raise row_length, or set overlong to split or truncate.",
                )
        borders = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
        self._put("documents.bin", borders.tobytes())
        self._put("bytes.bin", np.asarray(self.text_bytes, dtype="<i8").tobytes())
        self._put("spans.bin", spans.astype("<i8").tobytes())
        for name, file in self._files.items():
            file.close()
            self.digests[name] = self._hashes[name].hexdigest()
        rows = int(spans[-1, 0]) + 1 if len(spans) else 0
        index = {
            "format": FORMAT,
            "dtype": self.dtype.name,
            "vocab_size": self.vocab_size,
            "pad": pad,
            "tokens": int(lengths.sum()),
            "documents": len(lengths),
            "text_bytes": int(sum(self.text_bytes)),
            "rows": rows,
            "row_length": row_length,
            "packer": packer,
            "padding": rows * row_length - int(spans[:, 2].sum()),
            "overlong": {"choice": overlong, "documents": long},
            "spans": len(spans),
            "files": {
                name: {"bytes": (self.folder / name).stat().st_size, "sha256": digest}
                for name, digest in self.digests.items()
            },
        }
        (self.folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return index

    def _streams(self) -> list[str]:
        names = ["tokens.bin", "documents.bin", "bytes.bin", "spans.bin", "ids.txt"]
        return [*names, "mask.bin"] if self.masked else names

    def _put(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self._hashes[name].update(data)


class TokenRows:
    """Rows of a token folder, read on demand. Opening checks format and sizes, not every byte."""

    def __init__(self, folder: Path) -> None:
        path = folder / "index.json"
        try:
            self.index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            number, files = self.index["format"], self.index["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShunterError(f"no readable token index ({error})", where=str(path)) from error
        if number > FORMAT:
            raise ShunterError(
                f"the token file has format {number}, this shunter reads up to {FORMAT}",
                where=str(path),
                mend="Use a newer shunter.",
            )
        for name, record in files.items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if Path(name).name != name or size != record["bytes"]:
                raise ShunterError(
                    f"{name} has {size} bytes, the index says {record['bytes']}",
                    where=str(folder),
                    mend="The file was cut or changed; make it again with --redo.",
                )
        self.folder = folder
        self.num_rows, self.row_length = int(self.index["rows"]), int(self.index["row_length"])
        self.vocab_size, self.text_bytes = int(self.index["vocab_size"]), int(self.index["text_bytes"])
        self.tokens = self._map("tokens.bin", np.dtype(self.index["dtype"]).newbyteorder("<"))
        self.borders = self._map("documents.bin", np.dtype("<i8"))
        self.spans = self._map("spans.bin", np.dtype("<i8")).reshape(-1, 3)
        self.mask = self._map("mask.bin", np.dtype("u1")) if "mask.bin" in files else None
        self.first_span = np.searchsorted(self.spans[:, 0], np.arange(self.num_rows + 1))

    @property
    def digest(self) -> str:
        """Identity of the rows' content, of the packing as well as of the tokens."""
        parts = {name: record["sha256"] for name, record in self.index["files"].items() if name != "ids.txt"}
        return hashlib.sha256(json.dumps([parts, self.row_length], sort_keys=True).encode()).hexdigest()

    def rows(self, indices: NDArray[np.int64]) -> Batch:
        """The rows with these numbers, in this order."""
        shape = (len(indices), self.row_length)
        tokens = np.full(shape, self.index["pad"], dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        segments = np.full(shape, -1, dtype=np.int32)
        positions = np.zeros(shape, dtype=np.int64)
        for i, row in enumerate(indices):
            at = 0
            spans = self.spans[self.first_span[row] : self.first_span[row + 1]]
            for number, (_, begin, length) in enumerate(spans.tolist()):
                here = slice(at, at + length)
                end = int(self.borders[np.searchsorted(self.borders, begin, side="right")])
                known = min(length, end - begin - 1)  # the document's last token predicts nothing
                tokens[i, here] = self.tokens[begin : begin + length]
                following = self.tokens[begin + 1 : begin + 1 + known].astype(np.int64)
                if self.mask is not None:
                    following[self.mask[begin + 1 : begin + 1 + known] == 0] = IGNORE
                targets[i, at : at + known] = following
                segments[i, here] = number
                positions[i, here] = np.arange(length)
                at += length
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            raise ShunterError(
                f"a token id is {int(tokens.max())}, outside the vocabulary of {self.vocab_size}",
                where=str(self.folder),
                mend="The file is damaged; make it again with --redo.",
            )
        return Batch(tokens, targets, segments, positions, np.asarray(indices, dtype=np.int64))

    def documents_of(self, row: int) -> list[str]:
        """Names of the documents that stand in a row."""
        spans = self.spans[self.first_span[row] : self.first_span[row + 1]]
        numbers = np.searchsorted(self.borders, spans[:, 1], side="right") - 1
        names = (self.folder / "ids.txt").read_text(encoding="utf-8").split("\n")
        return [names[n] for n in numbers.tolist()]

    def _map(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self.folder / name
        if path.stat().st_size == 0:  # mmap refuses an empty file
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r")
