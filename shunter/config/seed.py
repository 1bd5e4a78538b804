"""Randomness has an owner: every stream of numbers is named, none is shared."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *keys: str | int) -> int:
    """A 63-bit seed for the stream named by `keys` under the job's `seed`.

    Streams are counter-based: keying by (seed, epoch), (seed, step, layer) and so on gives the same
    draw on any layout and after any resume, because nothing depends on how often a generator was
    called before. Keys of different type or split never collide ("a", "bc") != ("ab", "c").
    """
    digest = hashlib.blake2b(digest_size=8)
    for key in (seed, *keys):
        part = f"{type(key).__name__}:{key}".encode()
        digest.update(len(part).to_bytes(4, "little") + part)
    return int.from_bytes(digest.digest(), "little") >> 1
