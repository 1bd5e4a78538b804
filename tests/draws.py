"""How much is tried where each try is dear: some of every kind by default, all in `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import settings

SHORT, ALL = 20, 100  # of a test that does not say how many itself


def examples(few: int, many: int) -> int:
    """By the profile that is loaded before tests are imported."""
    return many if settings.default is not None and settings.default.max_examples == ALL else few


def some(
    names: str | tuple[str, ...],
    cases: Sequence[Any],
    every: int = 2,
    *,
    by: Callable[[Any], Iterator[str]] | None = None,
    ids: Callable[[Any], str] | None = None,
) -> pytest.MarkDecorator:
    """pytest's `parametrize` with some of the cases; the others are `long`. by: what a case is about; those
    are kept that are about something that none before them is. Else one in so many, the first always."""
    met: set[str] = set()

    def told(number: int, case: Any) -> Any:
        about = set() if by is None else set(by(case))
        kept = number % every == 0 if by is None else not about <= met
        met.update(about)
        values = (case,) if isinstance(names, str) else case
        marks = [] if kept else [pytest.mark.long]
        return pytest.param(*values, marks=marks, id=None if ids is None else ids(case))

    return pytest.mark.parametrize(names, [told(number, case) for number, case in enumerate(cases)])


def layout(case: Any, name: str = "") -> Iterator[str]:
    """What a layout, or something with one in it, is about: each setting, whether a degree is more than two,
    and what is chosen by name."""
    if isinstance(case, Mapping):
        for key, value in case.items():
            yield from layout(value, f"{name}.{key}")
    elif isinstance(case, tuple | list):
        for value in case:
            yield from layout(value, name)
    elif isinstance(case, bool | str) or case is None:
        yield f"{name}={case}"
    else:
        yield f"{name} many" if case > 2 else name
