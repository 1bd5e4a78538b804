"""A DCP storage reader and writer on safetensors shards and one JSON file.

torch's own file reader unpickles `.metadata`, which runs code from a crafted file. Here the metadata
is JSON, read into torch's dataclasses field by field, and tensors are safetensors. Non-tensor values
never reach DCP: its planner would pickle them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from shunter.config.errors import ShunterError

TENSORS = "tensors.json"
MAX_SHARD_BYTES = 2 << 30

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
        torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip


class ShardWriter(StorageWriter):
    """Writes this rank's tensors into `folder` as `rank-shard.safetensors`, and `tensors.json` at the end."""

    def __init__(self, folder: Path, *, rank: int = 0, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self.folder, self.rank, self.max_shard_bytes = folder, rank, max_shard_bytes
        self.shards: list[Path] = []

    def reset(self, checkpoint_id: Any = None) -> None:
        self.shards = []

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.is_coordinator = is_coordinator

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: list[WriteResult] = []
        shard: dict[str, torch.Tensor] = {}
        size = 0
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                raise TypeError(f"{item.index.fqn} is not a tensor; DCP would pickle it")
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor)
            if shard and size + tensor.nbytes > self.max_shard_bytes:
                self._flush(shard)
                shard, size = {}, 0
            offset = item.index.offset
            key = item.index.fqn + ("" if not offset or not any(offset) else "@" + ",".join(map(str, offset)))
            # A copy: safetensors refuses tensors that share storage, and views would save the whole.
            shard[key] = tensor.detach().cpu().contiguous().clone()
            size += tensor.nbytes
            results.append(WriteResult(item.index, tensor.nbytes, (self._name(), key)))
        if shard:
            self._flush(shard)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places = {_place(r.index): r.storage_data for per_rank in results for r in per_rank}
        tensors: dict[str, Any] = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            chunks = []
            for chunk in entry.chunks:
                file, key = places[(name, tuple(chunk.offsets))]
                chunks.append(
                    {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), "file": file, "key": key}
                )
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(entry.size), "chunks": chunks}
        (self.folder / TENSORS).write_text(json.dumps(tensors), encoding="utf-8")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def _name(self) -> str:
        return f"{self.rank:05d}-{len(self.shards):05d}.safetensors"

    def _flush(self, shard: dict[str, torch.Tensor]) -> None:
        path = self.folder / self._name()
        save_file(shard, path)
        self.shards.append(path)


class ShardReader(StorageReader):
    """Reads what `ShardWriter` wrote. Damaged metadata is a ShunterError that names the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = self.folder / TENSORS
        try:
            tensors = json.loads(path.read_text(encoding="utf-8"))
            entries: dict[str, Any] = {name: self._entry(name, raw) for name, raw in tensors.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShunterError(
                f"not the description of a checkpoint's tensors ({error})", where=str(path)
            ) from error
        indices = {MetadataIndex(name, torch.Size(at)): place for (name, at), place in self.places.items()}
        return Metadata(state_dict_metadata=entries, storage_data=indices)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self.places[_place(item.storage_index)][0], []).append(item)
        for file, items in by_file.items():
            with safe_open(str(self.folder / file), framework="pt") as shard:
                for item in items:
                    source = shard.get_tensor(self.places[_place(item.storage_index)][1])
                    ranges = zip(item.storage_offsets, item.lengths, strict=True)
                    for dim, (start, length) in enumerate(ranges):
                        source = source.narrow(dim, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(source)
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def _entry(self, name: str, raw: dict[str, Any]) -> TensorStorageMetadata:
        chunks = []
        for chunk in raw["chunks"]:
            file = str(chunk["file"])
            if Path(file).name != file:
                raise ValueError(f"the shard name {file!r} leaves the folder")
            offsets = tuple(int(o) for o in chunk["offsets"])
            self.places[(name, offsets)] = (file, str(chunk["key"]))
            chunks.append(
                ChunkStorageMetadata(torch.Size(offsets), torch.Size(int(s) for s in chunk["sizes"]))
            )
        return TensorStorageMetadata(
            TensorProperties(dtype=_DTYPES[raw["dtype"]]), torch.Size(int(s) for s in raw["shape"]), chunks
        )


def _place(index: MetadataIndex) -> tuple[str, tuple[int, ...]]:
    return index.fqn, tuple(index.offset or ())
