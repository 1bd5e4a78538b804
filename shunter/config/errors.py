"""The one exception for a person's mistake: what is wrong, where, and the mend."""

from __future__ import annotations

from functools import partial
from typing import Any


class ShunterError(Exception):
    """A user's mistake or a condition of their machine. The CLI prints it on one line and exits 2.

    Anything else that escapes is a bug and shows its traceback (exit code 1).

    what:  the fact, without a full stop ("file not found").
    where: the place, such as `recipe.yaml:12: jobs.base.train.lr`.
    mend:  what to do, as an imperative sentence.
    """

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.mend}" if self.mend else text


class MissingExtra(ShunterError):
    """An optional dependency is needed; the sentence says which extra to install."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            mend=f"Install it with: pip install 'shunter[{extra}]'",
        )
        self._made_of = partial(MissingExtra, package, extra=extra, purpose=purpose)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process sends its errors home: they are made again there."""
        return self._made_of, ()
