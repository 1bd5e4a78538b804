"""What roles hand to each other: rows of arrays of any length, by column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shunter.layout.piece import balanced

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Rows:
    """columns: by name, an array for each row; those of one column have one dtype.

    unit: so many rows that follow each other, as the answers to one prompt, are never parted.
    """

    columns: Mapping[str, Sequence[Array]]
    unit: int = 1

    def __post_init__(self) -> None:
        counts = {len(column) for column in self.columns.values()}
        if len(counts) > 1 or len(self) % self.unit:
            raise ValueError(f"columns of {sorted(counts)} rows in runs of {self.unit}")

    def __len__(self) -> int:
        return next((len(column) for column in self.columns.values()), 0)

    def __getitem__(self, name: str) -> Sequence[Array]:
        return self.columns[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for column in self.columns.values() for array in column)

    def take(self, begin: int, end: int) -> Rows:
        """Rows begin to end; at whole runs."""
        return Rows({name: column[begin:end] for name, column in self.columns.items()}, self.unit)

    def beside(self, *others: Rows) -> Rows:
        """These columns and those of others with the same rows; a later one of a name counts."""
        columns = dict(self.columns)
        for other in others:
            if len(other) != len(self):
                raise ValueError(f"{len(other)} rows beside {len(self)}")
            columns |= other.columns
        return Rows(columns, self.unit)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        names = parts[0].columns.keys()
        columns = {name: [array for part in parts for array in part[name]] for name in names}
        return cls(columns, parts[0].unit)


def share(rows: int, unit: int, count: int, index: int) -> tuple[int, int]:
    """[begin, end) of part `index` of `count`: whole runs, as many in each as can be, the larger first."""
    begin, end = balanced(rows // unit, count, index)
    return begin * unit, end * unit


def texts(strings: Iterable[str]) -> list[Array]:
    """Strings as arrays of bytes."""
    return [np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8) for text in strings]


def strings(arrays: Iterable[Array]) -> list[str]:
    """And back."""
    return [array.tobytes().decode("utf-8", "surrogatepass") for array in arrays]


def numbers(values: Iterable[float]) -> list[Array]:
    """A number a row."""
    return [np.array([value], dtype=np.float64) for value in values]
