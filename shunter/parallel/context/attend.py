"""Attention of rows whose tokens are spread over context ranks, by one of three ways of communication.

ring     keys and values travel round while each rank computes; any number of heads; least memory.
gather   every rank gathers all keys and values first; simple, cheap with few key/value heads.
ulysses  heads are exchanged for tokens; needs query heads that the ranks divide.

Grouped key/value heads are never repeated before they are sent.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.context_traffic import chunk_length
from shunter.models.uncompiled import uncompiled
from shunter.parallel.context.blockwise import whole
from shunter.parallel.context.gathered import gather
from shunter.parallel.context.ring import ring
from shunter.parallel.context.routes import Routes
from shunter.parallel.context.sight import Sight
from shunter.parallel.context.ulysses import ulysses
from shunter.parallel.mesh import Peers

Kind = Literal["ring", "gather", "ulysses"]


class ContextSight(Sight):
    """Who sees whom, and with it what a ring sends; make it once for a batch and give it to every layer.

    It costs time in proportion to (T / 256)^2 where documents or a window matter, and a wait for the device.
    """

    def __init__(
        self, length: int, size: int, segments: Tensor | None = None, window: int | None = None
    ) -> None:
        super().__init__(length, segments, window)
        if size > 1:
            chunk_length(length, size)
        self.size = size
        self._routes: Routes | None = None

    @property
    def routes(self) -> Routes:
        """Messages of a ring."""
        if self._routes is None:
            self._routes = Routes.plan(self, self.size)
        return self._routes


@uncompiled
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor | ContextSight | None,
    peers: Peers,
    *,
    kind: Kind,
    window: int | None = None,
) -> Tensor:
    """Causal attention with scale 1 / sqrt(d); every peer calls it at the same time.

    q [B, H, t, d], k, v [B, K, t, d]: this rank's t = T / size tokens in the order of `zigzag`; H is a
    multiple of K. Returns [B, H, t, d]. Differentiable; the gradients of k and v are whole on each rank.
    segments: [B, T] of the whole rows: the document's number, -1 on padding, which sees padding alone; None:
              each row is one document. Or a ContextSight made of them, which then holds the window too.
    window:   a token sees itself and the window - 1 before it.

    Raises ShunterError where rows do not split into 2 * size chunks, or for ulysses where heads do not.
    """
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key/value heads")
    # The kernels take it for granted that the numbers of one head stand together.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    length = q.shape[2] * peers.size
    if isinstance(segments, ContextSight):
        sight = segments
        if sight.length != length or sight.size != peers.size:
            raise ValueError(
                f"who sees whom was told for {sight.length} tokens on {sight.size} ranks, "
                f"but there are {length} on {peers.size}"
            )
        if window is not None and sight.window != (window if window < length else None):
            raise ValueError(f"who sees whom was told with a window of {sight.window}, not {window}")
    else:
        sight = ContextSight(length, peers.size, segments, window)
    if peers.size == 1:
        return whole(q, k, v, sight)
    if kind == "ring":
        return ring(q, k, v, sight, peers, sight.routes)
    if kind == "gather":
        return gather(q, k, v, sight, peers)
    if kind == "ulysses":
        return ulysses(q, k, v, peers, lambda q, k, v: whole(q, k, v, sight))
    raise ShunterError(f"{kind!r} is no kind of context parallelism", mend="Use ring, gather or ulysses.")
