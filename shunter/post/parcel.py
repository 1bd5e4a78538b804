"""Arrays for other processes of this machine: one file in memory that all of them map, and nobody copies.

A frame of `shunter.post.roles.wire` tells where each array stands in it; the file's descriptor follows, with
one byte. Where the system gives no such file (some sandboxes have the call and refuse it), it is one without
a name in the folder for temporary files; where that has no room either, the arrays go in the frame.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
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
        self._tried = False
        self._table: dict[str, Any] = {}

    def send(self, to: socket.socket, message: Mapping[str, Any], name: str) -> None:
        """A message with the arrays under this name, as `receive` gives it. Raises wire.Closed."""
        with self._lock:
            if not self._tried:
                self._tried = True
                self._file = _file(self.arrays, self._table)
                if self._file is not None:
                    weakref.finalize(self, os.close, self._file)
        if self._file is None:
            wire.send(to, {**message, name: dict(self.arrays)})
            return
        wire.send(to, {**message, name: self._table, "parcel": name})
        try:
            socket.send_fds(to, [b"P"], [self._file])
        except OSError as error:
            raise wire.Closed(str(error)) from None


def _file(arrays: Arrays, table: dict[str, Any]) -> int | None:
    """The descriptor of a file with the arrays, and where each stands in it put into the table. None where
    there is no place for one."""
    size = 0
    for name, array in arrays.items():
        table[name] = [array.dtype.name, list(array.shape), size]
        size += -(-array.nbytes // ALIGN) * ALIGN
    for make in PLACES:
        with suppress(*REFUSED):
            return _filled(make, arrays, table, max(1, size))
    return None


def unnamed(size: int) -> int | None:
    """The descriptor of a file without a name of so many bytes, all 0, which processes may map; None where
    there is no place for one."""
    for make in PLACES:
        with suppress(*REFUSED):
            return make(size)
    return None


def _in_memory(size: int) -> int:
    with open(os.memfd_create("weights", os.MFD_CLOEXEC), "w+b") as file:
        file.truncate(size)
        return os.dup(file.fileno())


def _on_disk(size: int) -> int:
    with tempfile.TemporaryFile(buffering=0) as file:
        # To write where a full disk has no room would end the process.
        while size > 0:
            size -= file.write(bytes(min(size, 1 << 20)))
        return os.dup(file.fileno())


PLACES = (_in_memory, _on_disk)
# An attribute that is there says little: seccomp answers with ENOSYS or EPERM when it is called.
REFUSED = (OSError, AttributeError)


def _filled(make: Callable[[int], int], arrays: Arrays, table: Mapping[str, Any], size: int) -> int:
    file = make(size)
    try:
        with mmap.mmap(file, size) as whole:
            for name, place in _views(whole, table).items():
                place[...] = arrays[name]
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
