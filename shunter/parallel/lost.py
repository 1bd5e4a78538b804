"""The error of a peer that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shunter.config.errors import ShunterError


class PeerLost(ShunterError):
    """Another rank is the cause: whoever reports failures looks for what that one said first.

    waited: for what this one waited, such as "add up gradients"."""

    lost = True

    def __init__(
        self, what: str, *, where: str | None = None, mend: str | None = None, waited: str | None = None
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.waited = waited


@contextmanager
def answering(rank: int, what: str) -> Iterator[None]:
    """Around calls in which the ranks meet: torch tells of a peer that is gone by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise PeerLost(
            f"rank {rank} cannot {what}: another rank does not answer ({reason})",
            mend="Look at what that rank said last; the run continues from its last checkpoint.",
            waited=f"to {what}",
        ) from error
