"""Whether this machine's memory holds the weights of several steps, and of who writes beside the learner."""

from __future__ import annotations

from shunter.config.errors import ShunterError
from shunter.models.footprint import cache_bytes, cache_tokens, copied_bytes
from shunter.models.spec import DecoderSpec
from shunter.recipe.disk import human
from shunter.record.memory import available


def writer_bytes(
    spec: DecoderSpec, element: int, batch: int, room: int, block: int, cache: int, *, copies: bool
) -> int:
    """Bytes that a process that writes alone holds: its weights, and of our own engine the cache and the copy
    of weights in another order. element: bytes of a weight; others as of `cache_tokens`. batch: 0 where a
    server writes for it."""
    found = float(spec.num_parameters * element)
    if batch:
        found += cache_bytes(spec, cache_tokens(batch, room, block, cache), block, element)
        found += copied_bytes(spec, element) if copies else 0.0
    return int(found)


def must_hold(
    size: int, staleness: int, writers: int | None, *, whole: int | None = None, handed: int | None = None
) -> None:
    """Raise ShunterError where there is too little memory. size: bytes of the weights that learn. writers:
    bytes of the processes that write on this machine's memory; None: there are no others, nor on devices.
    whole: of the model with what does not learn; handed: of what who writes is given each time. Both: as of
    what learns, which is all, unless told."""
    moments = staleness + 2 if staleness else 1  # one each, and one to compute with
    held = size * (moments - 1) + (whole or size) if staleness else size
    # Each step's weights wait as a file in memory until who writes takes them.
    sent = 0 if writers is None else (handed or size) * (staleness + 1)
    parts = {
        f"weights of {moments} moments" if moments > 1 else "a copy of the weights": held,
        "those on their way to the processes that write": sent,
        "what these hold": writers or 0,
    }
    need, have = sum(parts.values()), available()
    if have is None or need <= have:
        return
    named = [f"{name} ({human(each)})" for name, each in parts.items() if each]
    raise ShunterError(
        f"{', '.join(named)} take {human(need)}, and {human(have)} are free",
        where="staleness" if staleness else "how.writer",
        mend="Lower staleness, how.at_once or how.cache." if staleness else "Lower how.at_once or how.cache.",
    )
