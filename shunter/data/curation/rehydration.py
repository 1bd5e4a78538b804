"""How often a document that stood for a cluster is shown (FineWeb2, arXiv 2506.20920, section 3.7).

What was crawled many times was often good: of large clusters filters remove less. Each size of cluster gets
a number of copies by the share that filters removed of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MOST = 10
POOLED = 0.001  # of the documents: the largest clusters count as one size
WIDTH = 5
# The table of the project's README, which is older than the paper: least size of the cluster -> copies.
README = {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}


def copies(before: Mapping[int, int], after: Mapping[int, int], most: int = MOST) -> dict[int, int]:
    """Least size of a cluster -> copies, each for sizes up to the next.

    before, after: documents by the size of their cluster, entering and leaving the filters. A size of which
    no less than the whole was removed is shown once; the size of which least was removed `most` times; the
    others in between, smoothed over five neighbouring sizes, the first and the last as they are.
    """
    sizes = sorted(size for size, count in before.items() if count)
    if not sizes:
        return {}
    counts = np.array([before[size] for size in sizes])
    # Sizes above which less than one document in a thousand lies are pooled with the size below.
    above = np.cumsum(counts[::-1])[::-1]
    last = max(1, int((above > POOLED * counts.sum()).sum()))
    kept = np.array([after.get(size, 0) for size in sizes])
    pooled = np.append(counts[: last - 1], counts[last - 1 :].sum())
    left = np.append(kept[: last - 1], kept[last - 1 :].sum())
    removed = 1 - left / pooled
    overall = 1 - kept.sum() / counts.sum()
    gap = overall - removed.min()
    share = np.clip((overall - removed) / gap, 0, None) if gap > 0 else np.zeros(last)
    raw = 1 + (most - 1) * share
    return {
        size: max(1, int(np.floor(value + 0.5))) for size, value in zip(sizes, smoothed(raw), strict=False)
    }


def smoothed(values: Sequence[float] | np.ndarray, width: int = WIDTH) -> np.ndarray:
    """Moving average over `width` neighbours, fewer near the ends; the end points stay as they are."""
    given = np.asarray(values, np.float64)
    half = width // 2
    found = np.array([given[max(0, i - half) : i + half + 1].mean() for i in range(len(given))])
    if len(given):
        found[0], found[-1] = given[0], given[-1]
    return found


def of(size: int, table: Mapping[int, int]) -> int:
    """The copies of a document whose cluster has this size."""
    fits = [least for least in table if least <= size]
    return table[max(fits)] if fits else 1
