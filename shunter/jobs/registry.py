"""The kinds of jobs. A kind's module is imported when a recipe uses it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from shunter.recipe.job import Job

_ENTRIES = {
    "curate": "shunter.jobs.curate:JOB",
    "babel": "shunter.jobs.babel:JOB",
    "languages": "shunter.jobs.languages:JOB",
    "limits": "shunter.jobs.limits:JOB",
    "mix": "shunter.jobs.mix:JOB",
    "by-site": "shunter.jobs.sites:JOB",
    "commons": "shunter.jobs.commons:JOB",
    "litter": "shunter.jobs.litter:JOB",
    "edit-pairs": "shunter.jobs.edit_pairs:JOB",
    "ngrams": "shunter.jobs.ngrams:JOB",
    "classifier": "shunter.jobs.classifier:JOB",
    "tokenizer": "shunter.jobs.tokenizer:JOB",
    "tokens": "shunter.jobs.tokens:JOB",
    "conversations": "shunter.jobs.conversations:JOB",
    "import": "shunter.jobs.imported:JOB",
    "pretrain": "shunter.jobs.pretrain:JOB",
    "sft": "shunter.jobs.sft:JOB",
    "custom": "shunter.jobs.custom:JOB",
    "preferences": "shunter.jobs.preferences:JOB",
    "accepted": "shunter.jobs.accepted:JOB",
    "dpo": "shunter.jobs.dpo:JOB",
    "reward_model": "shunter.jobs.reward_model:JOB",
    "rl": "shunter.jobs.rl:JOB",
    "evaluate": "shunter.jobs.evaluate:JOB",
    "report": "shunter.jobs.report:JOB",
    "rehearse": "shunter.jobs.rehearse:JOB",
    "emulate": "shunter.jobs.emulate:JOB",
    "memory-samples": "shunter.jobs.memory:JOB",
    "stream": "shunter.jobs.stream:JOB",
    "traffic": "shunter.jobs.traffic:JOB",
    "reshard": "shunter.jobs.reshard:JOB",
    "map-roles": "shunter.jobs.mapping:JOB",
}


class Kinds(Mapping[str, Job[Any]]):
    """Kind -> job, from `module:attribute` entries."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, kind: str) -> Job[Any]:
        module, _, attribute = self._entries[kind].partition(":")
        job: Job[Any] = getattr(importlib.import_module(module), attribute)
        return job

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, kind: object) -> bool:
        return kind in self._entries


KINDS: Mapping[str, Job[Any]] = Kinds(_ENTRIES)
