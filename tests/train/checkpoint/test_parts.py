"""Parts written and read: every value is there, or it is said how many are not.

What this cannot show: time and memory, which are why blocks are counted and no mask of every value is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.piece import Piece
from shunter.train.checkpoint import parts

WHOLE = torch.arange(24.0).view(6, 4)


def written(folder: Path, *rows: tuple[int, int]) -> dict[str, Any]:
    """By a rank each."""
    every = []
    for rank, (begin, end) in enumerate(rows):
        piece = Piece.full((6, 4)).take(0, (begin, end))
        every.append(parts.write_parts(folder, rank, [("w", piece, WHOLE[begin:end])], {}, 1))
    return parts.joined(every)


def read(folder: Path, described: dict[str, Any], *rows: tuple[int, int]) -> Tensor:
    piece = Piece.full((6, 4)).take(0, *rows)
    tensor = torch.full(piece.local_shape, -1.0)
    parts.read_parts(folder, described, [("w", piece, tensor)])
    return tensor


def test_blocks_that_overlap_fill_a_part_as_those_that_do_not(tmp_path: Path) -> None:
    apart = written(tmp_path, (0, 2), (2, 6))
    with mock.patch.object(parts.torch, "zeros", side_effect=AssertionError("a mask")):
        assert torch.equal(read(tmp_path, apart, (1, 3), (5, 6)), WHOLE[[1, 2, 5]])
    overlapping = written(tmp_path, (0, 4), (2, 6))
    assert torch.equal(read(tmp_path, overlapping, (0, 6)), WHOLE)


@pytest.mark.parametrize(("rows", "lacks"), [(((0, 2), (4, 6)), 8), (((0, 3), (1, 4)), 8), (((1, 6),), 4)])
def test_values_that_no_block_has_are_counted(
    tmp_path: Path, rows: tuple[tuple[int, int], ...], lacks: int
) -> None:
    described = written(tmp_path, *rows)
    with pytest.raises(ShunterError, match=f"lacks {lacks} of the 24 values of w"):
        read(tmp_path, described, (0, 6))
