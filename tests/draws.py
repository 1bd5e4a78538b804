"""How much is tried where each try is dear: some of every kind by default, all in `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    ids: Callable[[Any], str] | None = None,
) -> pytest.MarkDecorator:
    """pytest's `parametrize` with one case in so many, the first always; the others are `long`."""

    def told(number: int, case: Any) -> Any:
        marks = [pytest.mark.long] if number % every else []
        values = (case,) if isinstance(names, str) else case
        return pytest.param(*values, marks=marks, id=None if ids is None else ids(case))

    return pytest.mark.parametrize(names, [told(number, case) for number, case in enumerate(cases)])
