"""Weights from a Hugging Face folder, of which each rank reads its part: the whole needs no room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.layout.piece import Piece
from shunter.private import parameters_of

Fill = Callable[[str, Piece, Tensor], None]


@contextmanager
def without_values() -> Iterator[None]:
    """Modules made within have parameters without values, on the meta device; their buffers are real, for
    nobody stores those that follow from a configuration."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        original(module, name, parameter)
        # One that has no values already may be tied: it stays the same object.
        if parameter is not None and not parameter.is_meta:
            bare = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            parameters_of(module)[name] = bare

    with mock.patch.object(nn.Module, "register_parameter", register):
        yield


def reader(folder: Path) -> Fill:
    """`fill(name, piece, tensor)` reads that part of a weight from the folder's safetensors files.

    A name may stand there with a prefix more or less (`transformer.`, `model.`). Raises ShunterError for a
    folder without such files, and when called for a weight that is not there or has another shape.
    """
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        except (SafetensorError, OSError) as error:
            raise ShunterError(f"this is no safetensors file ({error})", where=str(file)) from None
    if not places:
        raise ShunterError("the folder has no safetensors file", where=str(folder))

    def fill(name: str, piece: Piece, tensor: Tensor) -> None:
        stored = _stored(name, places, folder)
        with safe_open(str(places[stored]), framework="pt") as opened:
            source: Any = opened.get_slice(stored)
            shape = tuple(source.get_shape())
            if shape != piece.shape:
                raise ShunterError(
                    f"{name} has shape {list(piece.shape)}, and {list(shape)} in the folder",
                    where=str(places[stored]),
                )
            for box in piece.boxes():
                found = source[box.slices(box.whole)] if shape else opened.get_tensor(stored)
                tensor[box.slices(box.part)] = found.to(tensor)

    return fill


def _stored(name: str, places: dict[str, Path], folder: Path) -> str:
    if name in places:
        return name
    alike = [other for other in places if other.endswith(f".{name}") or name.endswith(f".{other}")]
    if len(alike) == 1:
        return alike[0]
    near = nearest(name, places)
    raise ShunterError(
        f"the model's {name} is not in the folder",
        where=str(folder),
        mend=f"There is {near}." if near else "Name the folder that the model's configuration is from.",
    )
