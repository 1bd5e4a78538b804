"""A model under evaluation, and how a task tells how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shunter.config.errors import ShunterError
from shunter.data.tokenizer import Tokenizer
from shunter.models.decoder import Decoder

# Called between two batches with (done, total, unit); raises `Stopped` when a stop was requested.
Tick = Callable[[int, int, str], None]


@dataclass
class Subject:
    """A model with its own tokenizer, under the name that tables show."""

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    device: torch.device

    @property
    def context(self) -> int:
        """Most tokens that the model can see."""
        return int(self.decoder.spec.max_positions)

    @property
    def start(self) -> int:
        """The token that a text begins after: the tokenizer's bos_token, or its end of text."""
        return self.tokenizer.start

    def check_ids(self, sequences: Sequence[Sequence[int]]) -> None:
        """Refuse ids that the model has no embedding for."""
        largest = max((max(ids) for ids in sequences if len(ids)), default=0)
        if largest >= self.decoder.spec.vocab_size:
            raise ShunterError(
                f"{self.name}: the tokenizer gives id {largest}, the model's vocabulary ends at "
                f"{self.decoder.spec.vocab_size - 1}",
                mend="Evaluate the model with the tokenizer that it was trained with.",
            )


def load(name: str, folder: Path, other_tokenizer: Path | None, device: torch.device) -> Subject:
    """Open a model's folder; `other_tokenizer` serves a model that came without one."""
    from shunter.models.hf import load_model

    own = (folder / "tokenizer.json").exists()
    if not own and other_tokenizer is None:
        raise ShunterError(
            f"the model {name} has no tokenizer",
            where=str(folder),
            mend="Put its tokenizer's files into the folder, or give `tokens`.",
        )
    tokenizer = Tokenizer.load(folder if own or other_tokenizer is None else other_tokenizer)
    decoder = load_model(folder, torch.float32).to(device).eval()
    return Subject(name, decoder, tokenizer, device)
