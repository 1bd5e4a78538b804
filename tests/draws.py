"""How many examples are drawn where each is dear: a few of every kind by default, many in `make test-all`."""

from __future__ import annotations

from hypothesis import settings

SHORT, ALL = 20, 100  # of a test that does not say how many itself


def examples(few: int, many: int) -> int:
    """By the profile that is loaded before tests are imported."""
    return many if settings.default is not None and settings.default.max_examples == ALL else few
