"""The job `sft`: a model learns to answer, from conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from shunter.jobs import ranks, training
from shunter.recipe.job import Input, JobConfig, JobContext
from shunter.train.config import TrainConfig, TrainHow


class SftConfig(JobConfig):
    """Tunes a model on rows of conversations, by default on what the assistant says in them only."""

    model: Annotated[str, Input("model")] = Field(description="Job whose model is tuned.")
    tokens: Annotated[str, Input("tokens")] = Field(description="Job that made the rows.")
    train: TrainConfig = Field(description="How long, how fast, with which optimizer.")
    how: TrainHow = Field(default_factory=TrainHow, description="Choices that must not change the result.")


class SftJob:
    """Writes a Hugging Face model folder."""

    kind: ClassVar[str] = "sft"
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 2  # 2: Muon takes fused projections one by one
    Config: ClassVar[type[JobConfig]] = SftConfig

    def check(self, config: SftConfig, base: Path) -> Sequence[str]:
        return training.check_how(config.how, config.train, base)

    def run(self, context: JobContext[SftConfig]) -> dict[str, Any]:
        if context.config.how.parallel is not None and context.world is None:
            return ranks.spread(context, context.config.how.parallel.located(context.base))
        from shunter.models.hf import load_model

        return training.train(context, load_model(context.one("model").path), context.one("tokens").path)


JOB = SftJob()
