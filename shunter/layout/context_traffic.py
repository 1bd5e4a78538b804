"""Bytes that attention over context ranks sends, from shapes alone.

With B rows of T tokens, H query and K key/value heads of width d, n ranks, b bytes an element, w = max(b, 4)
bytes of a gradient on its way (sums travel in float32), and one chunk's keys and values P = 2 B K d T / (2 n)
elements, rank r sends in causal rows of one document without a window

    ring     forward   P b (n - 1 + later)             later = n - r, or 0 for rank 0: see `routes`
             backward  P b (n - 1 + later) + P w (n - 1 + n - 1 - r)
    gather   forward   2 P b (n - 1)
             backward  2 P w (n - 1)
    ulysses  forward   B d b T / n ((n - 1) 2 H / n + 2 (S - s))
             backward  B d b T / n ((n - 1) 2 H / n + 2 (n - 1) s)

where s is the number of key/value heads that the rank's query heads need and S that of all ranks added up
(S = K where n divides K). The mean of a ring over its ranks is 3/4 of what each rank would send if whole
blocks went round. Documents and windows shorten a ring's ways (`Routes` knows by how much); the others send
the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from shunter.config.errors import ShunterError


class Routes(Protocol):
    """Of a ring: see `shunter.parallel.context.routes`."""

    def sent(self, index: int) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in one attention."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward


def chunk_length(length: int, size: int) -> int:
    """Tokens of a chunk. Raises ShunterError where `length` does not split into 2 * size equal chunks."""
    if length % (2 * size):
        step = 2 * size
        lower = length // step * step
        mend = f"Use rows of {lower} or {lower + step} tokens, or pad to the latter."
        if not lower:
            mend = f"Use rows of {step} tokens at least, or fewer ranks."
        raise ShunterError(
            f"rows of {length} tokens cannot be cut in {step} equal chunks, two for each of cp={size} ranks",
            mend=mend,
        )
    return length // (2 * size)


def query_heads(heads: int, size: int) -> int:
    """Query heads of each rank. Raises ShunterError where they cannot be spread evenly."""
    if heads % size:
        legal = [degree for degree in range(1, heads + 1) if heads % degree == 0]
        nearest = min(legal, key=lambda degree: abs(degree - size))
        raise ShunterError(
            f"{heads} query heads cannot be spread evenly over {size} context ranks",
            mend=f"Use cp={nearest}, or the kind ring, which takes any number of heads.",
        )
    return heads // size


def kv_heads_of(index: int, heads: int, kv_heads: int, size: int) -> range:
    """Key/value heads that the query heads of a rank need."""
    mine, group = query_heads(heads, size), heads // kv_heads
    return range(index * mine // group, ((index + 1) * mine - 1) // group + 1)


def traffic(
    kind: Literal["ring", "gather", "ulysses"],
    batch: int,
    length: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    size: int,
    itemsize: int,
    index: int | None = None,
    routes: Routes | None = None,
) -> Traffic:
    """What one rank sends; without `index`, the mean over ranks, rounded up.

    length: T, of whole rows. itemsize: bytes of an element of q, k and v. routes: of a ring whose rows have
    documents or a window. Errors as those of `attend`.
    """
    if size == 1:
        return Traffic(0, 0)
    if index is None:
        every = [
            traffic(kind, batch, length, heads, kv_heads, head_dim, size, itemsize, each, routes)
            for each in range(size)
        ]
        return Traffic(
            -(-sum(one.forward for one in every) // size), -(-sum(one.backward for one in every) // size)
        )
    chunk, wide = chunk_length(length, size), max(itemsize, 4)
    if kind == "ulysses":
        token = batch * head_dim * itemsize * 2 * chunk  # bytes of one head of a rank's tokens
        needed = [len(kv_heads_of(each, heads, kv_heads, size)) for each in range(size)]
        both = 2 * (size - 1) * query_heads(heads, size)
        return Traffic(
            token * (both + 2 * (sum(needed) - needed[index])),
            token * (both + 2 * (size - 1) * needed[index]),
        )
    part = 2 * batch * kv_heads * chunk * head_dim
    if kind == "gather":
        return Traffic(2 * part * itemsize * (size - 1), 2 * part * wide * (size - 1))
    keys = size - 1 + (size - index if index else 0)
    grads = size - 1 + size - 1 - index
    if routes is not None:
        keys, grads = routes.sent(index)
    return Traffic(part * itemsize * keys, part * (itemsize * keys + wide * grads))
