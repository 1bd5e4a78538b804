"""What a recorded step sends, and what a rank keeps between steps: counted, for the log."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from shunter.models.head import Others
from shunter.parallel.counted import Counted, counted
from shunter.parallel.part import DecoderPart
from shunter.train.optim import Optimizers


class StepTraffic:
    """Counts the collectives and messages of one step of this rank.

    Those of a head that is cut over tensor ranks are counted once more by themselves.
    """

    def __init__(self, part: DecoderPart) -> None:
        self.heads = [stage for stage in part.modules.values() if stage.others is not None]
        self.rows: list[_CountedRows] = []
        self.stack = ExitStack()

    def start(self) -> None:
        for stage in self.heads:
            assert stage.others is not None
            self.rows.append(_CountedRows(stage.others))
            stage.others = self.rows[-1]
        self.all = self.stack.enter_context(counted())

    def stop(self) -> dict[str, Any]:
        """`sent` of all and `head` of the head alone: {kind: [calls, bytes from this rank]}."""
        self.stack.close()
        for stage, rows in zip(self.heads, self.rows, strict=True):
            stage.others = rows.others
        head = Counted()
        for rows in self.rows:
            head.bytes.update(rows.sent.bytes)
            head.calls.update(rows.sent.calls)
        return {"sent": _by_kind(self.all), "head": _by_kind(head)}


def kept_bytes(part: DecoderPart, optimizers: Optimizers) -> dict[str, int]:
    """Bytes of this rank's weights, and of its optimizer's state."""
    return {"weights": _bytes(part.weights.values()), "optimizer": _bytes(states(optimizers))}


def states(optimizers: Optimizers) -> list[Tensor]:
    """Tensors that this rank's optimizer keeps."""
    return [tensor for state in optimizers.state().values() for tensor in state.values()]


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _by_kind(found: Counted) -> dict[str, list[int]]:
    calls: Counter[str] = Counter()
    for (kind, _), count in found.calls.items():
        calls[kind] += count
    sizes = found.by_kind()
    return {kind: [count, sizes.get(kind, 0)] for kind, count in sorted(calls.items())}


class _CountedRows:
    """The same meetings; what they send is counted."""

    def __init__(self, others: Others) -> None:
        self.others, self.sent = others, Counted()
        self.begin, self.rows = others.begin, others.rows

    def largest(self, values: Tensor) -> Tensor:
        with counted() as found:
            values = self.others.largest(values)
        return self._note(found, values)

    def total(self, values: Tensor) -> Tensor:
        with counted() as found:
            values = self.others.total(values)
        return self._note(found, values)

    def _note(self, found: Counted, values: Tensor) -> Tensor:
        self.sent.bytes.update(found.bytes)
        self.sent.calls.update(found.calls)
        return values
