"""Validation whose complaints name file, line, key path, value and mend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shunter.config import scalar, shape
from shunter.config.errors import ShunterError
from shunter.config.nearest import distance, nearest
from shunter.config.shape import Place
from shunter.config.yaml import KeyPath, Source, dotted

M = TypeVar("M", bound=BaseModel)

# More errors than this in one file have one cause; the count of the rest is printed.
MAX_LISTED = 20

# What each of pydantic's complaints demands, after "must be" or as it stands when it begins with "must".
_DEMANDS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "must have at least {min_length} items, has {actual_length}",
    "too_long": "must have at most {max_length} items, has {actual_length}",
}
_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def parse(model: type[M], data: Any, source: Source | None = None, at: KeyPath = ()) -> M:
    """Validate `data`, which stands at the key path `at` of `source`.

    Raises one ShunterError that lists every mistake, one a line in the order of the file, each as
    `file:line: key.path: what (got ...). Mend`. A ShunterError from a validator passes as it is.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        complaints = [_Complaint(details, model, data) for details in error.errors(include_url=False)]
    errors = _render(_choose(complaints, 0), source, at)
    if len(errors) == 1:
        raise errors[0]
    shown = [str(error) for error in errors[:MAX_LISTED]]
    if len(errors) > MAX_LISTED:
        shown.append(f"and {len(errors) - MAX_LISTED} more")
    raise ShunterError("\n".join(shown))


class _Complaint:
    """One of pydantic's errors with its place in the data and the models around it."""

    def __init__(self, details: Any, model: type[BaseModel], data: Any) -> None:
        self.kind: str = details["type"]
        self.context: dict[str, Any] = details.get("ctx", {})
        self.message: str = details["msg"]
        self.got: Any = details["input"]
        self.place: Place = shape.locate(model, details["loc"])
        self.path: KeyPath = self.place.path
        if self.kind in ("union_tag_not_found", "union_tag_invalid"):
            self.path = (*self.path, self.context["discriminator"].strip("'"))
            self.members = [str(key) for key in self.got] if isinstance(self.got, dict) else []
            self.got = self.context.get("tag")
        owner = shape.reach(data, self.place.path[:-1])
        self.siblings: Sequence[str] = list(owner) if isinstance(owner, dict) else []

    @property
    def is_missing(self) -> bool:
        return self.kind in ("missing", "union_tag_not_found")

    def demand(self) -> str:
        """What the value must be, for `must be ...`."""
        if self.kind == "value_error":
            return str(self.context["error"])
        text = _DEMANDS.get(self.kind)
        return text.format(**self.context) if text else self.message[:1].lower() + self.message[1:]

    def error(self, source: Source | None, at: KeyPath) -> ShunterError:
        what, mend = self.sentence()
        path = (*at, *self.path)
        return ShunterError(what, where=source.where(path) if source else dotted(path) or None, mend=mend)

    def sentence(self) -> tuple[str, str | None]:
        if self.kind == "extra_forbidden":
            return "unknown key", self.suggestion()
        if self.kind == "missing":
            return "this key is required", None
        if self.kind == "union_tag_not_found":
            near = nearest(str(self.path[-1]), self.members)
            return "this key is required", f"Is {near!r} meant to be {self.path[-1]!r}?" if near else None
        if self.kind == "union_tag_invalid":
            known = re.findall(r"'([^']*)'", self.context["expected_tags"])
            return f"unknown value (got {_show(self.got)})", _choice(str(self.got), known)
        demand = self.demand()
        if self.kind == "value_error" or self.kind not in _DEMANDS:
            return demand.rstrip("."), None
        if self.kind in ("literal_error", "enum"):
            known = re.findall(r"'([^']*)'", demand)
            near = nearest(self.got, known) if isinstance(self.got, str) else None
            mend = f"Did you mean {near!r}?" if near else None
        else:
            mend = _spelling(self.got, self.kind)
        if demand.startswith("must"):
            return demand, mend
        return f"must be {demand} (got {_show(self.got)})", mend

    def suggestion(self) -> str:
        """The mend of an unknown key: a key of this mapping, or the mapping where this key belongs."""
        key, owner = str(self.path[-1]), self.place.owners[-1][1]
        # Keys that are not yet set come first among equally near ones.
        fields = sorted(shape.keys(owner), key=lambda name: name in self.siblings)
        near = nearest(key, fields)
        if near and distance(key, near) <= 1:
            return f"Did you mean {near!r}?"
        for name in fields:
            for inner in shape.models_of(owner, name):
                if key in shape.keys(inner):
                    return f"Did you mean '{name}.{key}'?"
        for path, outer in reversed(self.place.owners[:-1]):
            if key in shape.keys(outer):
                return f"It belongs to {dotted(path)!r}." if path else "It belongs to the top of the file."
        if near:
            return f"Did you mean {near!r}?"
        return f"Known keys: {', '.join(shape.keys(owner))}." if fields else "No keys are known here."


def _choose(complaints: list[_Complaint], level: int) -> list[_Complaint]:
    """Keep, of each union, the branch that the person most likely meant.

    pydantic reports every branch. A branch that was entered (its error lies below the union) beats
    one whose type did not fit at all; of several, the one with the fewest errors. If none was
    entered, one complaint names all that the value could be.
    """
    chosen: list[_Complaint] = []
    groups: dict[KeyPath, dict[str, list[_Complaint]]] = {}
    for complaint in complaints:
        if len(complaint.place.unions) <= level:
            chosen.append(complaint)
        else:
            path, label = complaint.place.unions[level]
            groups.setdefault(path, {}).setdefault(label, []).append(complaint)
    for path, branches in groups.items():
        entered = [group for group in branches.values() if any(_entered(c, path) for c in group)]
        if entered:
            chosen += _choose(min(entered, key=len), level + 1)
        else:
            heads = [_choose(group, level + 1)[0] for group in branches.values()]
            demands = dict.fromkeys(head.demand() for head in heads)
            heads[0].kind, heads[0].context = "literal_error", {"expected": " or ".join(demands)}
            chosen.append(heads[0])
    return chosen


def _entered(complaint: _Complaint, union: KeyPath) -> bool:
    # A validator of ours speaks only after the type fitted, also when it speaks of the whole branch.
    return len(complaint.path) > len(union) or complaint.kind == "value_error"


def _render(complaints: list[_Complaint], source: Source | None, at: KeyPath) -> list[ShunterError]:
    """In the order of the file. A required key that stands there misspelt is one mistake, not two."""
    misspelt = set()
    for complaint in complaints:
        if complaint.kind == "extra_forbidden":
            absent = [
                str(c.path[-1]) for c in complaints if c.is_missing and c.path[:-1] == complaint.path[:-1]
            ]
            if near := nearest(str(complaint.path[-1]), absent):
                misspelt.add((*complaint.path[:-1], near))

    def order(complaint: _Complaint) -> int:
        path = (*at, *complaint.path)
        return (source.line(path) or 0) if source else 0

    kept = [c for c in complaints if not (c.is_missing and c.path in misspelt)]
    return [complaint.error(source, at) for complaint in sorted(kept, key=order)]


def _choice(got: str, known: list[str]) -> str:
    near = nearest(got, known)
    return f"Did you mean {near!r}?" if near else f"Known: {', '.join(known)}."


def _spelling(got: Any, kind: str) -> str | None:
    """The mend of a value that is nearly right: YAML 1.1 booleans, quoted numbers, `1_000`, `1e3`."""
    if kind == "bool_type" and isinstance(got, str) and got.lower() in {*_BOOLEANS, "true", "false"}:
        return f"Write {_BOOLEANS.get(got.lower(), got.lower())}."
    if kind == "int_type" and isinstance(got, float) and got.is_integer() and abs(got) < 1e15:
        return f"Write {int(got)}."
    if kind in ("int_type", "float_type") and isinstance(got, str):
        plain = got.replace("_", "").replace(",", "").strip()
        if plain and len(plain) < 40 and type(scalar.parse(plain)) in (int, float):
            return f"Write {plain} without quotes." if plain == got else f"Write {plain}."
    if kind == "string_type" and isinstance(got, bool | int | float):
        return f"Put it in quotes: '{_show(got)}'."
    if kind == "list_type" and isinstance(got, bool | int | float | str):
        return f"Write [{_show(got)}]."
    return None


def _show(value: Any) -> str:
    """A value as YAML would write it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
