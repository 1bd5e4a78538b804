"""A DCP storage reader of safetensors shards and one JSON file, as `parts` writes them.

torch's own file reader unpickles `.metadata`, which runs code from a crafted file. Here the metadata
is JSON, read into torch's dataclasses field by field, and tensors are safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from shunter.config.errors import ShunterError
from shunter.train.checkpoint.shard import NAMES

TENSORS = "tensors.json"

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in NAMES}


class ShardReader(StorageReader):
    """Reads what `write_parts` wrote. Damaged metadata is a ShunterError that names the file."""

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
