"""A reward model: a decoder with a head of one number, read at the last token of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model
from shunter.post.batch import Answers, Sample, grouped, micro_batches, sharing
from shunter.post.preferences import of_each
from shunter.post.rewards import CANARY, Item, Unbounded
from shunter.post.step import Scorer

HEAD = "value.safetensors"
TOKENS = 4096  # that are read at once


def new_head(dim: int) -> nn.Linear:
    """Zeros: every answer begins with the reward 0, whatever the model."""
    head = nn.Linear(dim, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def save_head(head: nn.Linear, folder: Path) -> None:
    """Write the head beside the model."""
    save_file({"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}, folder / HEAD)


def load_head(folder: Path) -> nn.Linear:
    """The head of a reward model's folder. Raises ShunterError where there is none."""
    if not (folder / HEAD).is_file():
        raise ShunterError(
            "this model has no reward head", where=str(folder), mend="Make it with reward_model."
        )
    stored = load_file(folder / HEAD)
    head = nn.Linear(stored["weight"].shape[1], 1)
    head.load_state_dict(stored)
    return head


class Learnt(Unbounded):
    """A rule that a model has learnt. It reads the very tokens that were written: tokenizers must agree, as
    the caller sees to."""

    name = "model"
    mend = "Take a reward model with the policy's tokenizer, and a context that its answers fit in."
    tolerance = 1e-4  # a device may sum in another order the second time
    computes = True

    def __init__(self, decoder: Decoder, head: nn.Linear, device: torch.device) -> None:
        self.scorer = Scorer(decoder.to(device).eval(), device, value=head.to(device))
        self._known: list[tuple[Item, float]] = []

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Learnt:
        """From an artefact of the job reward_model."""
        return cls(load_model(folder), load_head(folder), device)

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        spec = self.scorer.decoder.spec
        found: list[float | str] = ["the answer has tokens that the reward model does not know"] * len(items)
        able = [i for i, item in enumerate(items) if item.ids and max(item.ids) < spec.vocab_size]
        for i in able:
            if len(items[i].ids) > spec.max_positions:
                found[i] = f"the answer is longer than the reward model's context of {spec.max_positions}"
        able = [i for i in able if len(items[i].ids) <= spec.max_positions]
        # Canaries by themselves: what is computed together differs in its last bits by what else is there.
        for apart in (True, False):
            same: dict[tuple[int, ...], list[int]] = {}
            for i in able:
                if (items[i].prompt == CANARY) == apart:
                    same.setdefault(tuple(items[i].ids), []).append(i)
            # Equal texts are read once: at other places of a row their last bits would differ, and a group of
            # equal answers, which teaches nothing, would seem to.
            samples = _ended([items[first] for first, *_ in same.values()])
            says = of_each(self.scorer, samples, TOKENS, "value", self._cut)
            for mine, each in zip(same.values(), says, strict=True):
                for i in mine:
                    found[i] = float(each[-1])
        return found

    def _cut(self, samples: Sequence[Sample]) -> list[Answers]:
        """Micro-batches; answers to one prompt in a row, where that can be and is quicker."""
        rows = sharing(samples, TOKENS, self.scorer.decoder.spec, self.scorer.device.type)
        if rows is None:
            return micro_batches([[each] for each in samples], TOKENS)
        alone = [row for row in rows if len(row) == 1]  # needs no mask, which a long one would fill
        return [*grouped([row for row in rows if len(row) > 1], TOKENS), *micro_batches(alone, TOKENS)]

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        """Two rows of tokens, and what this model said of them at the start: a model whose weights change in
        the midst of a run, by whatever shares them, says something else."""
        if not self._known:
            spec = self.scorer.decoder.spec
            longest = [(7 * i + 1) % spec.vocab_size for i in range(min(16, spec.max_positions))]
            rows = [Item(CANARY, "", "", ids=ids) for ids in (longest, longest[: len(longest) // 2 + 1])]
            said = self.grade(rows)
            self._known = [
                (row, score) for row, score in zip(rows, said, strict=True) if isinstance(score, float)
            ]
        return self._known


def _ended(items: Sequence[Item]) -> list[Sample]:
    """Their tokens, and one more: a reward stands at the last token, which predicts nothing. Learnt from, so
    to speak, is what the answers to one prompt do not begin with in common."""
    common: dict[str, NDArray[np.int64]] = {}
    for item in items:
        ids = np.asarray(item.ids)
        before = common.setdefault(item.prompt, ids)
        length = min(len(before), len(ids))
        differs = (before[:length] != ids[:length]).nonzero()[0]
        common[item.prompt] = ids[: differs[0] if len(differs) else length]
    found = []
    for item in items:
        begin = max(1, len(common[item.prompt]))
        own = len(item.ids) + 1 - begin
        found.append(Sample([*item.ids, 0], [False] * begin + [True] * own))
    return found
