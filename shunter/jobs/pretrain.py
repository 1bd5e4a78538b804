"""The job `pretrain`: a decoder learns text, from nothing or from an earlier model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.jobs import ranks, training
from shunter.jobs.milestones import Milestones, tracker
from shunter.models.spec import DecoderShape
from shunter.recipe.job import Input, JobConfig, JobContext
from shunter.train.config import TrainConfig, TrainHow


class PretrainHow(TrainHow):
    """How to train, and what to look at meanwhile."""

    milestones: Milestones | None = Field(
        None, description="Score and samples during the training, at some validations."
    )


class PretrainConfig(JobConfig):
    """Trains a model on rows of text."""

    tokens: Annotated[str, Input("tokens")] = Field(description="Job that made the rows.")
    model: DecoderShape | None = Field(
        None, description="Shape of a new model; the rows decide its vocabulary and context."
    )
    init: Annotated[str | None, Input("model")] = Field(
        None, description="Job whose model is trained further, instead of a new one."
    )
    train: TrainConfig = Field(description="How long, how fast, with which optimizer.")
    how: PretrainHow = Field(
        default_factory=PretrainHow, description="Choices that must not change the result."
    )

    @model_validator(mode="after")
    def _one_beginning(self) -> PretrainConfig:
        if (self.model is None) == (self.init is None):
            raise ValueError("give either model, for a new one, or init")
        every = self.train.validate_every
        if self.how.milestones is not None and every and self.how.milestones.every % every:
            raise ValueError(f"how.milestones.every must be a multiple of train.validate_every, {every}")
        return self


class PretrainJob:
    """Writes a Hugging Face model folder."""

    kind: ClassVar[str] = "pretrain"
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 2  # 2: Muon takes fused projections one by one
    Config: ClassVar[type[JobConfig]] = PretrainConfig

    def check(self, config: PretrainConfig, base: Path) -> Sequence[str]:
        layers = config.model.num_layers if config.model else None
        if config.model and config.model.rope.scaling == "dynamic" and config.model.rope.original_positions:
            raise ShunterError(
                "dynamic scaling stretches from the rows' length, whatever original_positions says",
                where="model.rope.original_positions",
                mend="Leave it out.",
            )
        return training.check_how(config.how, config.train, base, layers)

    def disk_bytes(self, config: PretrainConfig, base: Path) -> int:
        return training.disk_bytes(config.model, config.how) if config.model else 0

    def run(self, context: JobContext[PretrainConfig]) -> dict[str, Any]:
        if context.config.how.parallel is not None and context.world is None:
            return ranks.spread(context, context.config.how.parallel.located(context.base))
        from shunter.data.tokens import TokenRows
        from shunter.models.decoder import Decoder
        from shunter.models.hf import load_model
        from shunter.models.init import init_weights
        from shunter.models.spec import DecoderSpec

        tokens = context.one("tokens").path
        if context.config.model is None:
            decoder = load_model(context.one("init").path)
        else:
            rows = TokenRows(tokens / "train")
            shape = context.config.model.model_dump()
            decoder = Decoder(DecoderSpec(**shape, vocab_size=rows.vocab_size, max_positions=rows.row_length))
            init_weights(decoder, context.config.seed)
        if (wanted := context.config.how.milestones) is None:
            return training.train(context, decoder, tokens)
        last, seed = context.config.train.steps, context.config.seed
        return training.train(
            context, decoder, tokens, lambda model: tracker(wanted, model, tokens, context.events, seed, last)
        )


JOB = PretrainJob()
