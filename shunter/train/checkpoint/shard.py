"""One safetensors file, written while a second thread takes its digest.

The format is small (a length, a JSON header, the bytes), and written here because the library's writer wants
a copy of each tensor and leaves the digest to another reading of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

AHEAD = 2  # tensors that may wait for their digest: a device's have a copy each

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write and sync the file; returns its size and digest, as a manifest has them.

    tensors: on any device, of any strides; they may share storage. Raises OSError when the disk is full.
    """
    # The widest elements first: so each begins at a multiple of its own size, as readers need it.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    with path.open("wb") as file, _Digest() as digest:
        digest.take(head)
        file.write(head)
        for name in names:
            data = _bytes(tensors[name])
            digest.take(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(head) + end, "sha256": digest.hexadecimal()}


class _Digest:
    """Of what it is given, taken on a second thread; known after its `with`.

    No executor: the interpreter's end forbids those new work while saves are still waited for.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._queue: Queue[bytes | memoryview | None] = Queue(AHEAD)
        self._thread = Thread(target=self._run, name="digest")

    def __enter__(self) -> _Digest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def take(self, data: bytes | memoryview) -> None:
        self._queue.put(data)

    def hexadecimal(self) -> str:
        return self._hash.hexdigest()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in order; without a copy where it stands so in this memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    # Not `numpy()`: a tensor that was seen so once can give its memory back to nobody (`parallel.together`).
    return np.from_dlpack(flat).data
