"""Messages between processes: a JSON header and the raw bytes of arrays. Nothing that is read can run.

Frame: two unsigned 64-bit numbers (bytes of the header, of the body), header, body. In the header an array is
its dtype, its shape and where its bytes begin in the body; `Rows` are columns, each with one dtype and the
shapes of its rows, whose arrays stand one after the other.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.post.roles.rows import Array, Rows

DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
HEADER = 1 << 28  # bytes of a header at most
_FRAME = struct.Struct(">QQ")
_ARRAY, _ROWS = "$array", "$rows"


class Closed(Exception):
    """The other end is gone."""


def encode(value: Any) -> tuple[bytes, list[memoryview]]:
    """Header and body. Raises ShunterError for what is neither JSON, an array, nor Rows."""
    body: list[memoryview] = []
    at = 0

    def put(arrays: Sequence[Array]) -> int:
        nonlocal at
        begin = at
        for array in arrays:
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if raw.nbytes:
                body.append(raw.data)
                at += raw.nbytes
        return begin

    def plain(it: Any) -> Any:
        if it is None or isinstance(it, bool | int | float | str):
            return it
        if isinstance(it, np.ndarray) and it.dtype.name in DTYPES:
            return {_ARRAY: [it.dtype.name, list(it.shape), put([it])]}
        if isinstance(it, Rows):
            columns = {name: _column(name, arrays, put) for name, arrays in it.columns.items()}
            return {_ROWS: {"unit": it.unit, "columns": columns}}
        if isinstance(it, Mapping) and all(isinstance(key, str) and key[:1] != "$" for key in it):
            return {key: plain(each) for key, each in it.items()}
        if isinstance(it, list | tuple):
            return [plain(each) for each in it]
        raise ShunterError(
            f"a value of the type {type(it).__name__} cannot be sent",
            mend="Send numbers, text, lists, mappings, arrays or Rows.",
        )

    return json.dumps(plain(value)).encode(), body


def _column(name: str, arrays: Sequence[Array], put: Any) -> list[Any]:
    kinds = {array.dtype.name for array in arrays}
    if len(kinds) > 1 or not kinds <= set(DTYPES):
        raise ShunterError(f"the column {name} holds {', '.join(sorted(kinds))}: one kind can be sent")
    return [next(iter(kinds), "float64"), [list(array.shape) for array in arrays], put(arrays)]


def decode(header: bytes | bytearray, body: bytes | bytearray) -> Any:
    """The value. Raises ValueError where the header does not fit the body."""

    def array(dtype: str, shape: Sequence[int], at: int) -> Array:
        if dtype not in DTYPES or any(not isinstance(size, int) or size < 0 for size in shape):
            raise ValueError(f"no array is {dtype} {shape}")
        count = math.prod(shape)
        if at < 0 or at + count * np.dtype(dtype).itemsize > len(body):
            raise ValueError("an array ends beyond the message")
        return np.frombuffer(body, dtype=dtype, count=count, offset=at).reshape(shape)

    def column(dtype: str, shapes: Sequence[Sequence[int]], at: int) -> list[Array]:
        found = []
        for shape in shapes:
            found.append(array(dtype, shape, at))
            at += found[-1].nbytes
        return found

    def value(it: Any) -> Any:
        if isinstance(it, list):
            return [value(each) for each in it]
        if not isinstance(it, dict):
            return it
        if _ARRAY in it:
            return array(*it[_ARRAY])
        if _ROWS in it:
            columns = {name: column(*each) for name, each in it[_ROWS]["columns"].items()}
            return Rows(columns, it[_ROWS]["unit"])
        return {key: value(each) for key, each in it.items()}

    return value(json.loads(header))


def size_of(header: bytes, body: int = 0) -> int:
    """Bytes of a frame with this header and so many bytes of arrays."""
    return _FRAME.size + len(header) + body


def send(to: socket.socket, value: Any) -> int:
    """Send a value; returns its bytes. Raises Closed."""
    header, body = encode(value)
    size = sum(part.nbytes for part in body)
    try:
        to.sendall(_FRAME.pack(len(header), size) + header)
        for part in body:
            to.sendall(part)
    except OSError as error:
        raise Closed(str(error)) from None
    return _FRAME.size + len(header) + size


def receive(of: socket.socket) -> tuple[Any, int]:
    """The next value, and its bytes. Raises Closed at the end, and for what is no message."""
    header, size = _FRAME.unpack(_exactly(of, _FRAME.size))
    if header > HEADER:
        raise Closed("this is no message")
    told, body = _exactly(of, header), _exactly(of, size)
    return decode(told, body), _FRAME.size + header + size


def _exactly(of: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view, at = memoryview(found), 0
    while at < size:
        try:
            got = of.recv_into(view[at:])
        except OSError as error:
            raise Closed(str(error)) from None
        if not got:
            raise Closed("the other end has closed")
        at += got
    return found
