"""Token files: what was written is what a model is shown, and damage is seen."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.tokens import IGNORE, TokenRows, TokenWriter

DOCUMENTS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), min_size=1, max_size=12)


def write(
    folder: Path,
    documents: list[list[int]],
    row_length: int,
    packer: Literal["concat", "best_fit"] = "concat",
    *,
    masks: list[list[bool]] | None = None,
    vocab_size: int = 100,
) -> TokenRows:
    writer = TokenWriter(folder, vocab_size=vocab_size, masked=masks is not None)
    for i in range(0, len(documents), 3):
        part = documents[i : i + 3]
        writer.append(
            [np.asarray(d, dtype=np.uint32) for d in part],
            [f"doc:{i + n}" for n in range(len(part))],
            [len(d) for d in part],
            [np.asarray(m) for m in masks[i : i + 3]] if masks is not None else None,
        )
    writer.finish(row_length, packer, pad=99)
    return TokenRows(folder)


@given(DOCUMENTS, st.integers(2, 16), st.sampled_from(["concat", "best_fit"]))
def test_documents_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    row_length: int,
    packer: Literal["concat", "best_fit"],
) -> None:
    """No token is cropped; each next token of a document is a target once; documents never meet."""
    rows = write(tmp_path_factory.mktemp("t"), documents, row_length, packer)
    batch = rows.rows(np.arange(rows.num_rows))
    real = batch.segments >= 0
    assert sorted(batch.tokens[real].tolist()) == sorted(t for d in documents for t in d)
    wanted = sorted((a, b) for d in documents for a, b in itertools.pairwise(d))
    has = batch.targets != IGNORE
    found = sorted(zip(batch.tokens[has].tolist(), batch.targets[has].tolist(), strict=True))
    assert found == wanted, "a target was lost, made up, or crosses a border"
    assert batch.num_valid == len(wanted)
    for row in range(rows.num_rows):
        inside = batch.segments[row][real[row]]
        assert (np.diff(inside) >= 0).all()
        for segment in np.unique(inside):
            positions = batch.positions[row][batch.segments[row] == segment]
            assert positions.tolist() == list(range(len(positions)))


@given(st.data(), DOCUMENTS)
def test_masks_choose_targets(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, documents: list[list[int]]
) -> None:
    masks = [data.draw(st.lists(st.booleans(), min_size=len(d), max_size=len(d))) for d in documents]
    rows = write(tmp_path_factory.mktemp("t"), documents, 16, "best_fit", masks=masks)
    batch = rows.rows(np.arange(rows.num_rows))
    wanted = sorted(
        t for d, m in zip(documents, masks, strict=True) for t, on in zip(d[1:], m[1:], strict=True) if on
    )
    assert sorted(batch.targets[batch.targets != IGNORE].tolist()) == wanted


def test_documents_of_a_row_are_named(tmp_path: Path) -> None:
    rows = write(tmp_path, [[1] * 5, [2] * 5, [3] * 5], 8)
    assert rows.documents_of(0) == ["doc:0", "doc:1"]
    assert rows.documents_of(1) == ["doc:1", "doc:2"]


def test_large_vocabularies_need_four_bytes(tmp_path: Path) -> None:
    rows = write(tmp_path, [[70_000, 5, 70_001]], 8, vocab_size=100_000)
    assert rows.tokens.dtype == np.uint32
    assert rows.rows(np.asarray([0])).tokens[0, :3].tolist() == [70_000, 5, 70_001]


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="outside the vocabulary"):
        write(tmp_path, [[100]], 8)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3, 4]], 8)
    with (tmp_path / "tokens.bin").open("r+b") as file:
        file.truncate(5)
    with pytest.raises(ShunterError, match="has 5 bytes"):
        TokenRows(tmp_path)


def test_damaged_ids_are_refused_when_read(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3, 4]], 8)
    (tmp_path / "tokens.bin").write_bytes(np.asarray([1, 2, 500, 4], dtype="<u2").tobytes())
    with pytest.raises(ShunterError, match="500, outside the vocabulary"):
        TokenRows(tmp_path).rows(np.asarray([0]))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2]], 8)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(ShunterError, match="Use a newer shunter"):
        TokenRows(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "t", [[1, 2]], 8)
    (tmp_path / "x").write_bytes(b"ab")
    index = json.loads((tmp_path / "t" / "index.json").read_text())
    index["files"]["../x"] = {"bytes": 2, "sha256": ""}
    (tmp_path / "t" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShunterError):
        TokenRows(tmp_path / "t")


def test_the_digest_knows_content_and_packing(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [4, 5, 6, 7], [8, 9]]
    one = write(tmp_path / "a", documents, 4)
    assert write(tmp_path / "b", documents, 4).digest == one.digest
    others = [
        write(tmp_path / "c", documents, 5),
        write(tmp_path / "d", documents, 4, "best_fit"),
        write(tmp_path / "e", [[1, 2, 3], [4, 5, 6, 8], [8, 9]], 4),
    ]
    assert len({one.digest, *(rows.digest for rows in others)}) == 4
