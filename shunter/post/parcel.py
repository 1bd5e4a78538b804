"""Arrays for other processes of this machine: one file in memory that all of them map, and nobody copies.

A frame of `shunter.post.roles.wire` tells where each array stands in it; the file's descriptor follows, with
one byte. Where the system has no such files, the arrays go in the frame.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shunter.post.roles import wire

Arrays = Mapping[str, NDArray[np.generic]]
ALIGN = 64  # bytes: where arrays begin


class Parcel:
    """Arrays by name, written once however many they are sent to. The file ends with the last who has it."""

    def __init__(self, arrays: Arrays) -> None:
        """arrays: that nobody changes."""
        self.arrays = arrays
        self._lock = threading.Lock()
        self._file: int | None = None
        self._table: dict[str, Any] = {}

    def send(self, to: socket.socket, message: Mapping[str, Any], name: str) -> None:
        """A message with the arrays under this name, as `receive` gives it. Raises wire.Closed."""
        with self._lock:
            if self._file is None and hasattr(os, "memfd_create"):
                self._file = self._written()
                weakref.finalize(self, os.close, self._file)
        if self._file is None:
            wire.send(to, {**message, name: dict(self.arrays)})
            return
        wire.send(to, {**message, name: self._table, "parcel": name})
        try:
            socket.send_fds(to, [b"P"], [self._file])
        except OSError as error:
            raise wire.Closed(str(error)) from None

    def _written(self) -> int:
        size = 0
        for name, array in self.arrays.items():
            self._table[name] = [array.dtype.name, list(array.shape), size]
            size += -(-array.nbytes // ALIGN) * ALIGN
        file = os.memfd_create("weights", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, max(1, size))
            with mmap.mmap(file, max(1, size)) as whole:
                for name, place in _views(whole, self._table).items():
                    place[...] = self.arrays[name]
        except BaseException:
            os.close(file)
            raise
        return file


def receive(of: socket.socket) -> dict[str, Any]:
    """The next message, with the arrays of a parcel in it. Raises wire.Closed."""
    message: dict[str, Any] = wire.receive(of)[0]
    name = message.pop("parcel", None)
    if name is None:
        return message
    try:
        _, files, _, _ = socket.recv_fds(of, 1, 1)
    except OSError as error:
        raise wire.Closed(str(error)) from None
    if not files:
        raise wire.Closed("the other end has closed")
    try:
        # Private, so that who has it may write; what is not written to is nowhere twice.
        whole = mmap.mmap(files[0], 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(files[0])
    message[name] = _views(whole, message[name])
    return message


def _views(whole: mmap.mmap, table: Mapping[str, Any]) -> dict[str, NDArray[np.generic]]:
    return {
        name: np.ndarray(tuple(shape), np.dtype(kind), whole, at) for name, (kind, shape, at) in table.items()
    }
