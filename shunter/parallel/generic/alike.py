"""Whether two modules compute the same but for the values of their parameters, as far as can be told.

Everything that stands in them is described: classes, shapes, flags, numbers, names, functions, buffers. What
cannot be described is itself alone, so that a module with such a thing is like no other.
"""

from __future__ import annotations

import functools
import types
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shunter.parallel.generic.products import Product, Table
from shunter.parallel.generic.shards import plain_class

_PLACE = ("layer", "idx", "index")  # words in the names of numbers that tell layers of one kind apart
_OURS = "_shunter"
_INTERNAL = frozenset(vars(nn.Module()))
_HOOKS = frozenset(name for name in _INTERNAL if name.endswith("_hooks"))
_DEPTH = 5


def described(module: nn.Module) -> tuple[Any, ...]:
    """Equal for modules that are alike."""
    parameters = tuple(
        (name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in module.named_parameters()
    )
    buffers = tuple((name, _value(buffer, 0)) for name, buffer in module.named_buffers())
    return parameters, buffers, tuple((path, _one(each)) for path, each in module.named_modules())


def _one(module: nn.Module) -> tuple[Any, ...]:
    found = []
    for name, value in sorted(vars(module).items()):
        if name in _HOOKS:
            found.append((name, tuple(_value(hook, 0) for hook in value.values())))
        elif (
            name in _INTERNAL
            or name.startswith(_OURS)
            or (type(value) is int and any(word in name for word in _PLACE))
        ):
            continue
        elif isinstance(value, Product | Table):
            found.append((name, (type(value), value.cut)))
        else:
            found.append((name, _value(value, 0)))
    return plain_class(module), module.extra_repr(), tuple(found)


def _is_place(name: str, value: Any) -> bool:
    return type(value) is int and any(word in name for word in _PLACE)


def _value(value: Any, depth: int) -> Any:
    """Something hashable that is equal for values that are."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | type | torch.dtype):
        return type(value), repr(value) if isinstance(value, float | complex) else value
    if depth > _DEPTH:
        return id(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Mapping):
        return type(value), tuple((str(key), _value(each, depth + 1)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_value(each, depth + 1) for each in value)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return type(value), id(value.__func__), type(value.__self__)
    if isinstance(value, functools.partial):
        return type(value), tuple(
            _value(each, depth + 1) for each in (value.func, value.args, value.keywords)
        )
    if isinstance(value, nn.Module) or callable(value) or not hasattr(value, "__dict__"):
        return id(value)
    return type(value), _value(vars(value), depth + 1)


def _tensor(value: Tensor) -> Any:
    shape = tuple(value.shape), value.dtype, str(value.device)
    if value.is_meta or value.is_sparse or value.is_quantized:
        return *shape, id(value)
    bits = value.detach().cpu().contiguous().flatten().view(torch.uint8) if value.numel() else None
    return *shape, 0 if bits is None else zlib.crc32(bits.numpy().tobytes())
