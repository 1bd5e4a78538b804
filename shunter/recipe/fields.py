"""Where a configuration names upstream jobs: its Input fields, also in nested models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shunter.recipe.job import Input

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Reference:
    """One Input field as a configuration fills it.

    path:  keys from the job's configuration to the field.
    types: artefact types that it takes.
    names: jobs named, in order; exactly one when `single`.
    """

    path: Path
    types: tuple[str, ...]
    names: tuple[str, ...]
    single: bool

    @property
    def field(self) -> str:
        """The name of this input in `JobContext.inputs`: `tokens`, or `tasks.0.corpus` when nested."""
        return ".".join(map(str, self.path))


def references(config: BaseModel, at: Path = ()) -> Iterator[Reference]:
    """All references of a configuration, in the order of its fields. None means no input."""
    for name, info in type(config).model_fields.items():
        value, path = getattr(config, name), (*at, name)
        annotation = _input(info)
        if annotation is None:
            yield from _nested(value, path)
        elif isinstance(value, str):
            yield Reference(path, annotation.types, (value,), single=True)
        elif isinstance(value, list):
            yield Reference(path, annotation.types, tuple(value), single=False)
        elif value is not None:
            raise TypeError(f"{type(config).__name__}.{name}: an Input is a str, a list[str] or None")


def replace(config: Any, changes: Mapping[Path, Any]) -> Any:
    """A copy of `config` with other values at these paths (validated values, not checked again)."""
    if () in changes:
        return changes[()]
    below: dict[str | int, dict[Path, Any]] = {}
    for path, value in changes.items():
        below.setdefault(path[0], {})[path[1:]] = value
    if not below:
        return config
    if isinstance(config, BaseModel):
        update = {str(key): replace(getattr(config, str(key)), rest) for key, rest in below.items()}
        return config.model_copy(update=update)
    if isinstance(config, list):
        return [replace(item, below.get(index, {})) for index, item in enumerate(config)]
    return {key: replace(item, below.get(key, {})) for key, item in config.items()}


def _input(info: FieldInfo) -> Input | None:
    for item in info.metadata:
        if isinstance(item, Input):
            return item
    return _inside(info.annotation)


def _inside(annotation: Any) -> Input | None:
    """An Input below the top: `Annotated[str, Input("model")] | None`."""
    for part in get_args(annotation):
        if isinstance(part, Input):
            return part
        if found := _inside(part):
            return found
    return None


def _nested(value: Any, path: Path) -> Iterator[Reference]:
    if isinstance(value, BaseModel):
        yield from references(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nested(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _nested(item, (*path, key))
