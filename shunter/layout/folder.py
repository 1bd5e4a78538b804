"""Names, shapes and heads of a Hugging Face folder's weights, read from headers alone."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.layout.fused import Heads
from shunter.layout.rules import Kind, Weight

MAX_HEADER = 100 << 20  # bytes; safetensors itself allows no more
# Without modules at hand, a table is known by its name (of Llama, GPT-2, GPT-J, T5, OPT, BLOOM, BERT, ..).
_TABLE = re.compile(r"embed|embd|^(wte|wpe|shared|relative_attention_bias)$", re.IGNORECASE)


def weights_of(folder: Path) -> tuple[list[Weight], Heads]:
    """What the folder's safetensors files hold, in order of names. Raises ShunterError for one without any,
    or with a damaged one."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ShunterError(
            "the folder has no safetensors file", where=str(folder), mend="Name a Hugging Face model folder."
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _header(file)
    kinds = _kinds(shapes)
    return [Weight(name, shapes[name], kinds[name]) for name in sorted(shapes)], Heads.of_config(
        _config(folder)
    )


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if not 0 < size <= MAX_HEADER:
                raise ValueError(f"a header of {size} bytes")
            told = json.loads(opened.read(size))
        return {
            str(name): tuple(int(each) for each in entry["shape"])
            for name, entry in told.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShunterError(f"this is no safetensors file ({error})", where=str(file)) from None


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShunterError(f"this is no configuration ({error})", where=str(path)) from None
    if not isinstance(told, dict):
        raise ShunterError("this is no configuration", where=str(path))
    return told


def _kinds(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Kind]:
    """Which layer each weight belongs to. A bias tells which dim of a matrix the outputs are; where it is
    square, or has none, the other layers of its name do."""
    votes: dict[str, set[bool]] = defaultdict(set)
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        bias = shapes.get(f"{module}.bias")
        if leaf == "weight" and len(shape) == 2 and bias is not None and shape[0] != shape[1]:
            votes[module.rpartition(".")[2]].add(bias == (shape[1],))
    any_transposed = {True} in votes.values()
    found: dict[str, Kind] = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        layer = module.rpartition(".")[2]
        if leaf != "weight" or len(shape) < 2:
            found[name] = "other"
        elif _TABLE.search(layer):
            found[name] = "embedding"
        elif len(shape) > 2:
            found[name] = "conv"
        else:
            # A layer without a vote: a head has no bias, and none of them is stored [in, out].
            transposed = votes.get(layer) == {True} or (
                layer not in votes and any_transposed and _square(shape, module, shapes)
            )
            found[name] = "transposed" if transposed else "linear"
    return found


def _square(shape: tuple[int, ...], module: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """A square matrix with a bias, in a model whose other products are stored [in, out]."""
    return shape[0] == shape[1] and shapes.get(f"{module}.bias") == (shape[0],)
