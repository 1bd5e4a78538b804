"""Parts of tensors in safetensors shards: what each rank of a layout writes, and reads under any other.

The format is that of `storage`: a shard holds blocks, `tensors.json` says where in the whole each begins. So
a checkpoint of any layout is read by any other, and by one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.piece import Piece
from shunter.record.points import reach
from shunter.train.checkpoint.later import Part
from shunter.train.checkpoint.shard import write_shard

MAX_SHARD_BYTES = 2 << 30

Source = tuple[slice, ...]  # in a stored block
Target = tuple[slice, ...]  # in the part that is filled
Described = dict[str, Any]  # as in tensors.json: name -> dtype, shape, chunks


def write_parts(
    folder: Path,
    rank: int,
    parts: Iterable[Part],
    files: dict[str, Any],
    step: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Described:
    """Write this rank's parts, and describe them. files: gets size and digest of each file by its name.

    A part that is cut on several dims, or in several ranges, is written in as many blocks.
    """
    described: Described = {}
    shard: dict[str, Tensor] = {}
    size = count = 0

    def flush() -> None:
        nonlocal shard, size, count
        if shard:
            path = folder / _file(rank, count)
            files[path.name] = write_shard(path, shard)
            if reach("checkpoint.shard", step=step) == "truncate":
                os.truncate(path, path.stat().st_size // 2)
            shard, size, count = {}, 0, count + 1

    for name, piece, tensor in parts:
        dtype = str(tensor.dtype).removeprefix("torch.")
        entry = described.setdefault(name, {"dtype": dtype, "shape": list(piece.shape), "chunks": []})
        for box in piece.boxes():
            block = tensor.detach()[box.slices(box.part)] if box.part else tensor.detach()
            if shard and size + block.nbytes > max_shard_bytes:
                flush()
            key = name + (f"@{','.join(map(str, box.whole))}" if any(box.whole) else "")
            shard[key] = block
            size += block.nbytes
            place = {"file": _file(rank, count), "key": key}
            entry["chunks"].append({"offsets": list(box.whole), "sizes": list(box.size), **place})
    flush()
    return described


def joined(every: Iterable[Described]) -> Described:
    """What all ranks described, as one. A block that two ranks wrote is the first one's."""
    whole: Described = {}
    for described in every:
        for name, entry in described.items():
            known = whole.setdefault(name, {**entry, "chunks": []})
            begun = {tuple(chunk["offsets"]) for chunk in known["chunks"]}
            known["chunks"] += [each for each in entry["chunks"] if tuple(each["offsets"]) not in begun]
    return whole


def read_parts(folder: Path, described: Described, parts: Iterable[Part]) -> None:
    """Fill the parts in place. Raises ShunterError when blocks of one are missing."""
    wanted: dict[str, list[tuple[Tensor, Source, Target, str]]] = {}
    for name, piece, tensor in parts:
        taken: list[Target] = []
        for chunk in described[name]["chunks"]:
            for source, target in _overlaps(piece, chunk["offsets"], chunk["sizes"]):
                if target not in taken:
                    taken.append(target)
                    wanted.setdefault(chunk["file"], []).append((tensor, source, target, chunk["key"]))
        there = _covered(taken, piece)
        if there < piece.numel:
            raise ShunterError(
                f"the checkpoint lacks {piece.numel - there} of the {piece.numel} values of {name} that are "
                "needed here",
                where=str(folder),
                mend="Go back to an earlier checkpoint: remove this one.",
            )
    for file, items in sorted(wanted.items()):
        with safe_open(str(folder / file), framework="pt") as shard:
            for tensor, source, target, key in items:
                block = shard.get_slice(key)[source] if source else shard.get_tensor(key)
                tensor.detach()[target] = block.to(tensor.device)


def _covered(taken: list[Target], piece: Piece) -> int:
    """Values of a part that stored blocks have. Few parts have blocks that overlap (heads that several tensor
    ranks wrote): a mask as large as the part is made for these alone."""
    if not any(_meet(one, other) for one, other in combinations(taken, 2)):
        return sum(prod(each.stop - each.start for each in target) for target in taken)
    mask = torch.zeros(piece.local_shape, dtype=torch.bool)
    for target in taken:
        mask[target] = True
    return int(mask.sum())


def _meet(one: Target, other: Target) -> bool:
    """Whether two blocks have values in common."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _overlaps(
    piece: Piece, offsets: list[int], sizes: list[int]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Where a stored block and a part have values in common: in the block, and in the part."""
    for box in piece.boxes():
        source, target = [], []
        for begin, at, size, start, length in zip(box.whole, box.part, box.size, offsets, sizes, strict=True):
            low, high = max(begin, start), min(begin + size, start + length)
            if low >= high:
                break
            source.append(slice(low - start, high - start))
            target.append(slice(at + low - begin, at + high - begin))
        else:
            yield tuple(source), tuple(target)


def _file(rank: int, count: int) -> str:
    return f"{rank:05d}-{count:05d}.safetensors"
