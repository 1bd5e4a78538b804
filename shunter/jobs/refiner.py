"""A model that answers texts for the operator `refine`, loaded once in each worker."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.data.curation.refine import Written

SPARE = 8  # tokens: lines that are counted one by one may have some more together
_LOADED: dict[str, tuple[Any, Any]] = {}


@dataclass(frozen=True)
class ModelWriter:
    """folder: of the model. threads: of each worker; a job's own process keeps what it has."""

    folder: str
    max_new_tokens: int
    batch: int
    threads: int = 1

    def room(self) -> int:
        """Raises ShunterError where answers leave no room for a text."""
        decoder, tokenizer = self._opened()
        found = decoder.spec.max_positions - self.max_new_tokens - len(self._shown(tokenizer, "")) - SPARE
        if found < 1:
            raise ShunterError(
                f"the model's context of {decoder.spec.max_positions} tokens has no room beside "
                f"{self.max_new_tokens} new ones",
                where=self.folder,
                mend="Lower `max_new_tokens`.",
            )
        return int(found)

    def sizes(self, lines: Sequence[str]) -> list[int]:
        """Tokens of each line."""
        return [len(ids) for ids in self._opened()[1].encode_batch(lines)]

    def write(self, shown: Sequence[str]) -> list[Written]:
        """The likeliest answers, by continuous batching."""
        from shunter.generate.config import SamplingConfig
        from shunter.generate.rollout import rollouts
        from shunter.jobs import models

        decoder, tokenizer = self._opened()
        stops = {*tokenizer.stop_ids, *models.special(Path(self.folder))["eos_token_id"]}
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=self.max_new_tokens, batch=self.batch)
        prompts = [self._shown(tokenizer, text) for text in shown]
        found = []
        for one in rollouts(decoder, prompts, sampling, stops):
            ended = one.stop_reason == "stop"
            text = tokenizer.decode(one.ids[:-1] if ended else one.ids)
            found.append(Written(text, len(one.ids), ended))
        return found

    def _shown(self, tokenizer: Any, text: str) -> list[int]:
        ids: list[int] = tokenizer.encode_prompt([{"role": "user", "content": text.replace("\x00", "")}])
        return ids

    def _opened(self) -> tuple[Any, Any]:
        """Decoder and tokenizer."""
        if self.folder not in _LOADED:
            import torch

            from shunter.jobs import taught
            from shunter.models.hf import load_model

            if multiprocessing.parent_process() is not None:
                torch.set_num_threads(self.threads)
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            decoder = load_model(Path(self.folder)).to(device).eval()
            _LOADED[self.folder] = decoder, taught.opened(Path(self.folder))
        return _LOADED[self.folder]
