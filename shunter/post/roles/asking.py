"""The role that asks: prompts stand on a worker, not with the controller."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shunter.config.seed import derive_seed
from shunter.data.loader import Loader
from shunter.data.tokenizer import Tokenizer
from shunter.post.config import RewardConfig
from shunter.post.prompts import read_prompts
from shunter.post.roles.protocol import operation
from shunter.post.roles.role import Role, Station
from shunter.post.roles.rows import Rows, texts


class Prompts(Role):
    """Reads a split of conversations and draws from it as `rl` does: by (seed, how many were drawn)."""

    def __init__(
        self,
        station: Station,
        *,
        path: str,
        tokenizer: str,
        per_step: int,
        room: int,
        task: str | None = None,
        prefix: str = "",
        rewards: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(station, **settings)
        configs = [RewardConfig.model_validate(each) for each in rewards]
        self.read = read_prompts(Path(path), Tokenizer.load(Path(tokenizer)), task, room, prefix, configs)
        self.per_step, self.seed = per_step, derive_seed(seed, "order")
        self.targets = any(prompt.targets for prompt in self.read.items)

    @operation("all_to_one")
    def take(self, *, step: int) -> Rows:
        """The prompts of a step: `ids`, `place` in the step, `text`, `target`, `id`, `targets` (JSON)."""
        loader = Loader(self.read, self.seed, step * self.per_step)
        chosen = [self.read.items[int(i)] for i in loader.take(self.per_step)]
        self.tell(prompts=self.read.num_rows, too_long=self.read.too_long)
        targets = {}  # only where there are any: they travel with every step
        if self.targets:
            targets = {"targets": texts(json.dumps(dict(prompt.targets)) for prompt in chosen)}
        return Rows(
            {
                "ids": [np.asarray(prompt.ids, dtype=np.int64) for prompt in chosen],
                "place": [np.array([place]) for place in range(len(chosen))],
                "text": texts(prompt.text for prompt in chosen),
                "target": texts(prompt.target for prompt in chosen),
                "id": texts(prompt.id for prompt in chosen),
                **targets,
            }
        )
