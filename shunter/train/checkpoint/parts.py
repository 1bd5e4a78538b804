"""Parts of tensors in safetensors shards: what each rank of a layout writes, and reads under any other.

The format is that of `storage`: a shard holds blocks, `tensors.json` says where in the whole each begins. So
a checkpoint of any layout is read by any other, and by one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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
    wanted: dict[str, list[tuple[str, Piece, Tensor, dict[str, Any]]]] = {}
    filled: dict[str, int] = {}
    for name, piece, tensor in parts:
        filled[name] = piece.numel
        seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        for chunk in described[name]["chunks"]:
            at = tuple(chunk["offsets"]), tuple(chunk["sizes"])
            if at in seen:
                continue
            seen.add(at)
            wanted.setdefault(chunk["file"], []).append((name, piece, tensor, chunk))
    masks = {name: torch.ones(piece.local_shape, dtype=torch.bool) for name, piece, _ in parts}
    for file, items in sorted(wanted.items()):
        with safe_open(str(folder / file), framework="pt") as shard:
            for name, piece, tensor, chunk in items:
                for source, target in _overlaps(piece, chunk["offsets"], chunk["sizes"]):
                    block = (
                        shard.get_slice(chunk["key"])[source] if source else shard.get_tensor(chunk["key"])
                    )
                    tensor.detach()[target] = block.to(tensor.device)
                    masks[name][target] = False
    for name, mask in masks.items():
        if bool(mask.any()):
            raise ShunterError(
                f"the checkpoint lacks {int(mask.sum())} of the {filled[name]} values of {name} needed here",
                where=str(folder),
                mend="Go back to an earlier checkpoint: remove this one.",
            )


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
