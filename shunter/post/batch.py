"""Rows of what models wrote, with what is known of each token; and the sequences in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shunter.data.tokens import IGNORE, Batch
from shunter.models.footprint import copies_prompts, forked_scores
from shunter.models.spec import DecoderSpec

MASKED = 4096  # tokens of a row that is masked on a GPU
# Tokens of a row of which the mask costs as much as all else: on an H100, a step with rows of 2,180 tokens
# took 0.79 of the time of one with 1.43 times the tokens in rows without a mask.
SQUARE = 20_000
ROUND_WIDTH = 8  # each new shape makes oneDNN build and keep a kernel


@dataclass(frozen=True)
class Sample:
    """One text: a prompt and what followed.

    ids:   all tokens. What a model wrote is never encoded anew: the same text may have other tokens.
    wrote: of each token, whether it is one to learn from; never true of the first, which nothing predicts.
    known: numbers of each token that is learnt from, by name: `old` (log-probability under the policy that
           wrote it), `reference`, `advantage`, `value`, `return`.
    masked: nothing of it is learnt from, though it has its place among the sequences of a batch.
    """

    ids: Sequence[int]
    wrote: Sequence[bool]
    known: Mapping[str, Sequence[float] | NDArray[np.float64]] = field(default_factory=dict)
    masked: bool = False

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.wrote) or not self.ids or self.wrote[0]:
            raise ValueError("a sample has one flag a token, and its first token is predicted by nothing")
        for name, values in self.known.items():
            if len(values) != sum(self.wrote):
                raise ValueError(f"{name} has {len(values)} numbers for {sum(self.wrote)} tokens")

    @property
    def teaches(self) -> bool:
        """Whether a token of it that is learnt from has an advantage."""
        return not self.masked and bool(np.any(np.asarray(self.known["advantage"]) != 0))


@dataclass(frozen=True)
class Answers(Batch):
    """A batch with what is known of its targets: float64 [B, T] by name, 0 where there is no target.

    shared: segment 0 of each row is a prompt that the row's other segments, its answers, all see.
    """

    known: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    shared: bool = False


def lay_out(samples: Sequence[Sample], pad: int = 0, width: int | None = None) -> Answers:
    """One sample a row, filled up on the right. width: of the rows; default: the longest's, rounded up."""
    longest = max(len(sample.ids) for sample in samples) - 1
    # One more than the longest where a sample has a single token, so that no row is empty.
    width = width or max(ROUND_WIDTH, -(-longest // ROUND_WIDTH) * ROUND_WIDTH)
    shape = (len(samples), width)
    tokens, targets = np.full(shape, pad, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    segments, positions = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.int64)
    names = samples[0].known.keys()
    known = {name: np.zeros(shape) for name in names}
    for row, sample in enumerate(samples):
        ids, wrote = np.asarray(sample.ids, dtype=np.int64), np.asarray(sample.wrote, dtype=bool)
        length = max(1, len(ids) - 1)
        if length > width:
            raise ValueError(f"a sample of {length} tokens does not fit rows of {width}")
        tokens[row, :length], segments[row, :length] = ids[:length], 0
        positions[row, :length] = np.arange(length)
        if sample.masked:
            continue
        places = wrote[1:].nonzero()[0]
        targets[row, places] = ids[1:][places]
        for name in names:
            known[name][row, places] = sample.known[name]
    return Answers(tokens, targets, segments, positions, np.arange(len(samples)), known)


def beside(samples: Sequence[Sample], pad: int = 0, width: int | None = None) -> Answers:
    """Samples that begin with one prompt, in a row of their own: the prompt once, then the answers.

    Each answer begins with the prompt's last token anew, which predicts its first one.
    """
    first = list(samples[0].ids)
    begin = min(list(sample.wrote).index(True) for sample in samples)
    head = first[: begin - 1]
    if any(list(sample.ids[:begin]) != first[:begin] for sample in samples):
        raise ValueError("samples of one row begin with one prompt")
    length = len(head) + sum(len(sample.ids) - begin for sample in samples)
    width = width or max(ROUND_WIDTH, -(-length // ROUND_WIDTH) * ROUND_WIDTH)
    tokens = np.full((1, width), pad, dtype=np.int64)
    targets = np.full((1, width), IGNORE, dtype=np.int64)
    segments, positions = np.full((1, width), -1, dtype=np.int32), np.zeros((1, width), dtype=np.int64)
    known = {name: np.zeros((1, width)) for name in samples[0].known}
    at = len(head)
    tokens[0, :at], segments[0, :at], positions[0, :at] = head, 0, np.arange(at)
    for number, sample in enumerate(samples, 1):
        ids, wrote = np.asarray(sample.ids)[begin - 1 :], np.asarray(sample.wrote, dtype=bool)[begin:]
        here = slice(at, at + len(wrote))
        tokens[0, here], segments[0, here] = ids[:-1], number
        positions[0, here] = begin - 1 + np.arange(len(wrote))
        if not sample.masked:
            places = at + wrote.nonzero()[0]
            targets[0, places] = ids[1:][wrote]
            for name, values in sample.known.items():
                known[name][0, places] = values
        at += len(wrote)
    return Answers(tokens, targets, segments, positions, np.zeros(1, dtype=np.int64), known, shared=True)


def targets(samples: Sequence[Sample]) -> int:
    """Their tokens that are learnt from."""
    return sum(sum(sample.wrote) for sample in samples if not sample.masked)


def by_prompt(samples: Sequence[Sample], tokens: int, *, device: str = "cpu") -> list[list[Sample]]:
    """Samples that begin with one prompt, for a row of at most `tokens` tokens, or of one sample.

    Where attention copies the prompt's keys and values for each answer (`shunter.models.forks`), a row has no
    more answers than `tokens` hold with a prompt each: else a long prompt's copies, which a short row does
    not show, would take memory that `tokens` is to bound. On a device that masks them instead, rows are short
    enough that the mask, the square of a row, costs little.
    """
    copies = copies_prompts(device)
    tokens = tokens if copies else min(tokens, MASKED)
    rows: dict[tuple[int, ...], list[list[Sample]]] = {}
    for sample in samples:
        begin = list(sample.wrote).index(True)
        parts = rows.setdefault(tuple(sample.ids[:begin]), [[]])
        if parts[-1] and _taken([*parts[-1], sample], begin, copies) > tokens:
            parts.append([])
        parts[-1].append(sample)
    return [part for parts in rows.values() for part in parts]


def sharing(
    samples: Sequence[Sample], tokens: int, spec: DecoderSpec, device: str
) -> list[list[Sample]] | None:
    """`by_prompt`, where rows that share a prompt can be computed and cost less than a row for each answer;
    else None. Under a mask, on a GPU, they cost less where prompts are long enough.

    Not where the model counts what it sees (a window), or shares out tokens (experts): there a prompt that is
    there once is another thing than one that is there eight times.
    """
    if spec.sliding_window is not None or spec.experts is not None or spec.rope.scaling == "dynamic":
        return None
    rows = by_prompt(samples, tokens, device=device)
    if copies_prompts(device):
        return rows
    shared = 0.0
    for row in rows:
        prompt = list(row[0].wrote).index(True)
        length = prompt + sum(len(each.ids) - prompt for each in row)
        shared += length * (1 + length / SQUARE)
    return rows if shared < sum(len(each.ids) for each in samples) else None


def _taken(samples: Sequence[Sample], prompt: int, copies: bool) -> int:
    """Tokens of a row of these samples, or with copies of their prompt, where it is copied."""
    count, longest = len(samples), max(len(sample.ids) for sample in samples)
    length = prompt + sum(len(sample.ids) - prompt for sample in samples)
    copies = copies and forked_scores(length, prompt, [(count, longest - prompt)]) is not None
    return max(length, count * longest) if copies else length


def grouped(
    groups: Sequence[Sequence[Sample]], tokens: int, pad: int = 0, *, least: int = 1
) -> list[Answers]:
    """Batches of at most about `tokens` tokens, a row for each group of samples with one prompt. least: rows
    of each but the last, however many tokens those are."""
    rows = sorted((beside(group, pad) for group in groups), key=lambda row: row.tokens.shape[1])
    found: list[Answers] = []
    begin = 0
    for end in range(1, len(rows) + 1):
        wide = end < len(rows) and rows[end].tokens.shape[1] * (end + 1 - begin) > tokens
        if end == len(rows) or (wide and end - begin >= least):
            found.append(_stacked(rows[begin:end], pad))
            begin = end
    return found


def _stacked(rows: Sequence[Answers], pad: int) -> Answers:
    width = max(row.tokens.shape[1] for row in rows)

    def wide(values: NDArray, fill: float) -> NDArray:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)

    names = rows[0].known
    return Answers(
        np.concatenate([wide(row.tokens, pad) for row in rows]),
        np.concatenate([wide(row.targets, IGNORE) for row in rows]),
        np.concatenate([wide(row.segments, -1) for row in rows]),
        np.concatenate([wide(row.positions, 0) for row in rows]),
        np.arange(len(rows), dtype=np.int64),
        {name: np.concatenate([wide(row.known[name], 0.0) for row in rows]) for name in names},
        shared=True,
    )


def micro_batches(units: Sequence[Sequence[Sample]], tokens: int, pad: int = 0) -> list[Answers]:
    """Batches of at most about `tokens` tokens each, padding included; a unit's samples stay together.

    Units of like length share a batch: what is learnt does not depend on the order, only the padding does.
    """
    order = sorted(range(len(units)), key=lambda i: (max(len(s.ids) for s in units[i]), i))
    found: list[Answers] = []
    batch: list[Sample] = []
    for number in order:
        unit = units[number]
        width = max(len(sample.ids) for sample in unit)
        if batch and width * (len(batch) + len(unit)) > tokens:
            found.append(lay_out(batch, pad))
            batch = []
        batch += unit
    return [*found, lay_out(batch, pad)] if batch else found


class Sequences:
    """The sequences of a batch: its segments, counted through row by row. Tensors stand on `device`.

    valid  [B, T] bool: where there is a target
    number [B, T] int64: of the sequence that a token stands in; 0 on padding, which is never valid
    count:  sequences, those without any target included
    lengths [count]: targets of each
    """

    def __init__(self, batch: Batch, device: torch.device | str = "cpu") -> None:
        self.batch = batch
        # A prompt that answers share is no sequence of its own.
        real = batch.segments >= (1 if isinstance(batch, Answers) and batch.shared else 0)
        rows, length = batch.segments.shape
        keys = np.arange(rows, dtype=np.int64)[:, None] * (length + 1) + batch.segments
        found, number = np.unique(keys[real], return_inverse=True)
        numbers = np.zeros(batch.segments.shape, dtype=np.int64)
        numbers[real] = number
        self.count = len(found)
        self.number = torch.from_numpy(numbers).to(device)
        self.valid = torch.from_numpy(batch.targets != IGNORE).to(device)
        self.lengths = self.sums(self.valid.double())
        last = np.zeros(self.count, dtype=np.int64)
        flat = real.reshape(-1).nonzero()[0]
        last[number] = flat  # the later one of a sequence overwrites
        self.last = torch.from_numpy(last).to(device)

    def known(self, name: str) -> Tensor:
        """[B, T] of what is known by this name."""
        assert isinstance(self.batch, Answers)
        return torch.from_numpy(self.batch.known[name]).to(self.valid.device)

    def sums(self, values: Tensor) -> Tensor:
        """[count]: sums over the targets of each sequence, of values [B, T]."""
        masked = torch.where(self.valid, values, 0.0)
        zeros = torch.zeros(self.count, dtype=values.dtype, device=values.device)
        return zeros.index_add(0, self.number.flatten(), masked.flatten())

    def means(self, values: Tensor) -> Tensor:
        """[count]: means over the targets of each sequence; 0 of a sequence without."""
        return self.sums(values) / self.lengths.clamp_min(1).to(values.dtype)

    def spread(self, values: Tensor) -> Tensor:
        """[B, T] of numbers [count], one a sequence."""
        return values[self.number]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all targets."""
        return torch.where(self.valid, values, 0.0).sum()

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))
