"""The models around a place in a configuration, found by their annotations.

pydantic's error locations mix keys of the data with labels of union branches; only the types tell
which is which (a branch may be called `text` and have a key `text`).
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag
from pydantic.fields import FieldInfo

from shunter.config.yaml import KeyPath


@dataclass
class Place:
    """Where an error lies.

    path:   keys and indices of the data only.
    owners: every model on the way with its path, outermost first.
    unions: those on the way, each with the label of the branch that was tried (of a tagged one: its tag).
    """

    path: KeyPath = ()
    owners: list[tuple[KeyPath, type[BaseModel]]] = field(default_factory=list)
    unions: list[tuple[KeyPath, str]] = field(default_factory=list)


def locate(model: type[BaseModel], loc: Sequence[str | int]) -> Place:
    """Translate pydantic's `loc` of an error in `model`."""
    place = Place()
    kind: Any = model
    tagged = False
    for part in loc:
        kind, tagged = _strip(kind, tagged)
        while len(only := _branches(kind)) == 1 and only[0] is not kind:
            kind, tagged = _strip(only[0], tagged)
        if len(branches := _branches(kind)) > 1:
            place.unions.append((place.path, str(part)))
            kind = _branch(branches, str(part), tagged)
            tagged = False
            continue
        if part == "[key]":  # the complaint is about the key itself, which is in the path already
            continue
        place.path = (*place.path, part)
        if _is_model(kind):
            place.owners.append((place.path[:-1], kind))
            info = _field(kind, str(part))
            kind, tagged = (_annotated(info), False) if info else (None, False)
        else:
            arguments = get_args(kind)
            origin = get_origin(kind)
            if origin is dict and len(arguments) == 2:
                kind = arguments[1]
            elif origin is tuple and isinstance(part, int) and Ellipsis not in arguments:
                kind = arguments[part] if part < len(arguments) else None
            else:
                kind = arguments[0] if arguments else None
            tagged = False
    return place


def keys(model: type[BaseModel]) -> list[str]:
    """The keys that a file may use, in the order of declaration."""
    return [info.alias or name for name, info in model.model_fields.items()]


def models_of(model: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """The models that the value of `key` may be: itself or a branch of a union, not list members."""
    info = _field(model, key)
    if info is None:
        return []
    kinds = [_strip(branch, False)[0] for branch in _branches(_strip(_annotated(info), False)[0])]
    return [kind for kind in kinds if _is_model(kind)]


def describe(model: type[BaseModel], path: KeyPath) -> str | None:
    """The sentence of the key at `path` below `model`; of a union, the first branch that has it."""
    kinds: list[Any] = [model]
    sentence: str | None = None
    for part in path:
        following: list[Any] = []
        for kind in kinds:
            bare = _strip(kind, False)[0]
            for branch in _branches(bare):
                inner = _strip(branch, False)[0]
                if _is_model(inner) and (info := _field(inner, str(part))):
                    following.append(info)
                elif isinstance(part, int) and get_origin(inner) is list:
                    following += get_args(inner)[:1]
                elif get_origin(inner) is dict:
                    following += get_args(inner)[1:]
        fields = [info for info in following if isinstance(info, FieldInfo)]
        sentence = fields[0].description if fields else None
        kinds = [_annotated(item) if isinstance(item, FieldInfo) else item for item in following]
    return sentence


def reach(data: Any, path: KeyPath) -> Any:
    """The value at `path` of plain data, or None."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    for name, info in model.model_fields.items():
        if key in (name, info.alias):
            return info
    return None


def _annotated(info: FieldInfo) -> Any:
    """The field's annotation with its metadata, as one `Annotated` type."""
    metadata = [*info.metadata, *([info] if info.discriminator else [])]
    return Annotated[info.annotation, *metadata] if metadata else info.annotation


def _strip(kind: Any, tagged: bool) -> tuple[Any, bool]:
    """Without `Annotated`; whether a discriminator was among the metadata."""
    while get_origin(kind) is Annotated:
        for item in kind.__metadata__:
            tagged = tagged or isinstance(item, Discriminator)
            tagged = tagged or (isinstance(item, FieldInfo) and item.discriminator is not None)
        kind = kind.__origin__
    return kind, tagged


def _branches(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, types.UnionType):
        return [branch for branch in get_args(kind) if branch is not type(None)]
    return [kind]


def _branch(branches: list[Any], label: str, tagged: bool) -> Any:
    """The branch that pydantic calls `label`; None if unknown (its inside then has no models)."""
    for branch in branches:
        kind, _ = _strip(branch, False)
        if tagged:
            tags = [item.tag for item in getattr(branch, "__metadata__", ()) if isinstance(item, Tag)]
            if _is_model(kind):
                for info in kind.model_fields.values():
                    if get_origin(info.annotation) is Literal:
                        tags += map(str, get_args(info.annotation))
            if label in tags:
                return branch
        else:
            name = getattr(get_origin(kind) or kind, "__name__", str(kind))
            # A model with a validator is called `function-after[check(), Name]`.
            if label == name or label.startswith(f"{name}[") or label.rstrip("]").endswith(f", {name}"):
                return branch
    return None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
