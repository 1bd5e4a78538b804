"""A known bug, made for the run of one case by putting another function in the place of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Mutant:
    """name:  in the table.
    bug:   what went wrong in the world, or would, with a source where there is one.
    case:  the name of the subject that must reveal it; see `subjects`.
    seen:  what differs: loss, norm, gradient, weight, state, tokens; or error, a sentence that is raised.
    place, function: where the function stands that is replaced.
    make:  the replacement, from the function itself.
    """

    name: str
    bug: str
    case: str
    seen: str
    place: Any
    function: str
    make: Callable[[Any], Any]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """For as long as it lasts, in this process."""
        static = isinstance(inspect.getattr_static(self.place, self.function), staticmethod)
        made = self.make(getattr(self.place, self.function))
        with mock.patch.object(self.place, self.function, staticmethod(made) if static else made):
            yield
