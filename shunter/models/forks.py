"""Attention of answers that share a prompt: each sees the prompt and itself, and nothing of the others.

A mask of the row says the same, but costs the square of all answers together. Here each answer is a row of
its own behind a copy of its prompt's keys and values, and the prompt a row for itself: work shrinks from
(P + n S)^2 to n S (P + S) for n answers of S tokens behind P. In training, what a prompt gets from its
answers is added up on the way back. After tree attention for one level of branches (arXiv 2305.09781,
section 4.2), where the branches are gathered instead of masked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.models.footprint import copies_prompts, forked_scores
from shunter.models.runs import beginnings
from shunter.models.uncompiled import uncompiled

SMALLEST = 16  # answers of up to so many tokens are taken together


@dataclass(frozen=True)
class _Part:
    """Texts of like length, `count` of `size` tokens each, the shorter ones filled up on the right.

    tokens [count * size]: the flat token of each slot (filled slots: some token of the row)
    real   [n]: slots that hold a token; None: all.
    owner  [count]: the row of each.
    """

    count: int
    size: int
    tokens: Tensor
    real: Tensor | None
    owner: Tensor


@dataclass(frozen=True)
class Forks:
    """Where prompts and answers stand in rows [B, T].

    prompts: a text of each row; None where no row has a prompt before its answers.
    answers: parts, of answers of like length.
    masks:   of each part [count or 1, 1, size, P + size]: True where an answer's token sees one of the
             prompt or of its own.
    """

    shape: tuple[int, int]
    prompts: _Part | None
    answers: tuple[_Part, ...]
    masks: tuple[Tensor, ...]
    full: bool  # no padding
    _places: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, segments: Tensor, always: bool = False) -> Forks | None:
        """From segments [B, T]: 0 of a prompt, from 1 on of the answers behind it, -1 of padding at the end.
        None where there is no answer, or a mask is as fast, unless `always`."""
        (rows, length), device = segments.shape, segments.device
        if not copies_prompts(device.type) and not always:
            return None
        flat = segments.cpu()
        starts = beginnings(flat)
        ends = torch.cat([starts[1:], torch.tensor([rows * length])])
        kinds, lengths = flat.flatten()[starts], ends - starts
        answers, prompts = kinds > 0, kinds == 0
        if not bool(answers.any()):
            return None
        before = torch.zeros(rows, dtype=torch.int64)  # tokens of each row's prompt
        before[starts[prompts] // length] = lengths[prompts]
        most = int(before.max())
        sizes = torch.tensor([max(SMALLEST, 1 << int(n - 1).bit_length()) for n in lengths.tolist()])
        parts: list[_Part] = []
        for size in sorted(set(sizes[answers].tolist())):
            mine = answers & (sizes == size)
            # Not the power of two itself: where all end at a limit, that is what they have.
            part = _part(starts[mine], lengths[mine], int(lengths[mine].max()), length)
            parts.append(part)
        # Of a mean row: counts of answers need not be whole.
        each = [(part.count / rows, part.size) for part in parts]
        if forked_scores(length, most, each) is None and not always:
            return None
        asked = None
        if most:
            asked = _part(torch.arange(rows) * length, before, most, length)
        masks = tuple(_mask(part, before, most).to(device) for part in parts)
        full = bool((flat >= 0).all())
        moved = tuple(_moved(part, device) for part in parts)
        return cls((rows, length), asked and _moved(asked, device), moved, masks, full)

    @property
    def parts(self) -> tuple[_Part, ...]:
        """Answers, then prompts."""
        return self.answers if self.prompts is None else (*self.answers, self.prompts)

    def places(self, number: int, heads: int) -> Tensor:
        """[count, H, size] of part `number`: where its tokens stand in [B * H * T]. The layers of a model
        have as many heads, so it is made once."""
        key = (number, heads)
        if key not in self._places:
            part, (_, length) = self.parts[number], self.shape
            row, at = part.tokens // length, part.tokens % length
            head = torch.arange(heads, device=part.tokens.device)
            found = (row[:, None] * heads + head) * length + at[:, None]
            self._places[key] = found.view(part.count, part.size, heads).transpose(1, 2).contiguous()
        return self._places[key]


def _part(starts: Tensor, lengths: Tensor, size: int, length: int) -> _Part:
    slots = torch.arange(size)
    inside = slots < lengths[:, None]
    tokens = (starts[:, None] + torch.where(inside, slots, 0)).flatten()
    real = None if bool(inside.all()) else inside.flatten().nonzero().flatten()
    return _Part(len(starts), size, tokens, real, starts // length)


def _moved(part: _Part, device: torch.device) -> _Part:
    real = None if part.real is None else part.real.to(device)
    return _Part(part.count, part.size, part.tokens.to(device), real, part.owner.to(device))


def _mask(part: _Part, before: Tensor, most: int) -> Tensor:
    own = torch.ones(part.size, part.size, dtype=torch.bool).tril()
    lengths = before[part.owner]
    if bool((lengths == most).all()):
        return torch.cat((torch.ones(part.size, most, dtype=torch.bool), own), dim=1)[None, None]
    seen = (torch.arange(most) < lengths[:, None])[:, None].expand(-1, part.size, -1)
    return torch.cat((seen, own.expand(part.count, -1, -1)), dim=2)[:, None]


class _Split(torch.autograd.Function):
    """Queries, keys and values of each part; keys and values of answers behind those of their prompts."""

    @staticmethod
    def forward(ctx: Any, forks: Forks, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        ctx.forks = forks
        heads, width = q.shape[1], q.shape[3]
        flat = [x.reshape(-1, width) for x in (q, k, v)]
        found: list[Tensor] = []
        asked = None if forks.prompts is None else forks.places(len(forks.answers), heads)
        for number, part in enumerate(forks.answers):
            own = forks.places(number, heads)
            seen = own if asked is None else torch.cat((asked.index_select(0, part.owner), own), dim=2)
            for x, places in zip(flat, (own, seen, seen), strict=True):
                found.append(x.index_select(0, places.flatten()).view(*places.shape, width))
        if asked is not None:
            found += [x.index_select(0, asked.flatten()).view(*asked.shape, width) for x in flat]
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        forks: Forks = ctx.forks
        (rows, length), (_, heads, _, width) = forks.shape, grads[0].shape
        size = (rows * heads * length, width)
        into = [grads[0].new_empty(size) if forks.full else grads[0].new_zeros(size) for _ in range(3)]
        shared = None if forks.prompts is None else list(grads[-3:])
        for number, part in enumerate(forks.answers):
            places = forks.places(number, heads)
            for which in range(3):
                grad = grads[3 * number + which]
                if which and shared is not None:
                    most = grad.shape[2] - part.size
                    # Of a part that autograd may hold too: not in place.
                    shared[which] = shared[which].index_add(0, part.owner, grad[:, :, :most])
                    grad = grad[:, :, most:]
                _put(into[which], places, grad, part)
        if forks.prompts is not None and shared is not None:
            places = forks.places(len(forks.answers), heads)
            for which in range(3):
                _put(into[which], places, shared[which], forks.prompts)
        return None, *(x.view(rows, heads, length, width) for x in into)


def _put(into: Tensor, places: Tensor, grad: Tensor, part: _Part) -> None:
    """Write what slots [count, H, size, D] have got to their tokens. In the order token, head, in which CPU
    kernels leave it."""
    width = grad.shape[3]
    flat = grad.transpose(1, 2).reshape(part.count * part.size, -1)
    at = places.transpose(1, 2).reshape(part.count * part.size, -1)
    if part.real is not None:
        flat, at = flat.index_select(0, part.real), at.index_select(0, part.real)
    into.index_copy_(0, at.flatten(), flat.reshape(-1, width))


class _Join(torch.autograd.Function):
    """[B * T, H D] of the parts' outputs [count, H, size, D]; 0 on padding."""

    @staticmethod
    def forward(ctx: Any, forks: Forks, *outputs: Tensor) -> Tensor:
        ctx.forks, ctx.heads = forks, outputs[0].shape[1]
        rows, length = forks.shape
        size = (rows * length, outputs[0].shape[1] * outputs[0].shape[3])
        found = outputs[0].new_empty(size) if forks.full else outputs[0].new_zeros(size)
        for part, output in zip(forks.parts, outputs, strict=True):
            flat, tokens = output.transpose(1, 2).reshape(part.count * part.size, -1), part.tokens
            if part.real is not None:
                flat, tokens = flat.index_select(0, part.real), tokens.index_select(0, part.real)
            found.index_copy_(0, tokens, flat)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = []
        for part in ctx.forks.parts:
            here = grad.index_select(0, part.tokens)
            if part.real is not None:  # a filled slot has another token's place, and nothing of its gradient
                kept = torch.zeros_like(here)
                here = kept.index_copy_(0, part.real, here.index_select(0, part.real))
            found.append(here.view(part.count, part.size, ctx.heads, -1).transpose(1, 2))
        return None, *found


@uncompiled
def forked_attention(q: Tensor, k: Tensor, v: Tensor, forks: Forks) -> Tensor:
    """Attention of prompts, and of answers to their prompt and themselves.

    q, k, v: [B, H, T, D] with equal H; returns [B, H, T, D].
    """
    rows, heads, length, width = q.shape
    q, k = q.to(v.dtype), k.to(v.dtype)  # norms of queries and keys may give wider numbers, on a GPU
    split = _Split.apply(forks, q, k, v)
    outputs = []
    for number in range(len(forks.parts)):
        own, keys, values = split[3 * number : 3 * number + 3]
        mask = forks.masks[number] if number < len(forks.answers) else None
        outputs.append(
            F.scaled_dot_product_attention(own, keys, values, attn_mask=mask, is_causal=mask is None)
        )
    joined: Tensor = _Join.apply(forks, *outputs)
    return joined.view(rows, length, heads, width).transpose(1, 2)
