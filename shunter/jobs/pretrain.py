"""The job `pretrain`: a decoder learns text, from nothing or from an earlier model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.jobs import adapters, foretold, layouts, ranks, training
from shunter.jobs.milestones import Milestones, tracker
from shunter.models.spec import DecoderShape
from shunter.recipe.graph import Graph, Node
from shunter.recipe.job import Input, JobConfig, JobContext
from shunter.surgery.config import AdapterConfig
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
    adapter: AdapterConfig | None = Field(
        None,
        exclude_if=lambda value: (
            value is None
        ),  # jobs without one are those that they were before there was any
        description="Train low-rank adapters of the model of `init`, and merge them.",
    )
    train: TrainConfig = Field(description="How long, how fast, with which optimizer.")
    how: PretrainHow = Field(
        default_factory=PretrainHow, description="Choices that must not change the result."
    )

    _optimizer = model_validator(mode="before")(adapters.choose_optimizer)

    @model_validator(mode="after")
    def _one_beginning(self) -> PretrainConfig:
        if (self.model is None) == (self.init is None):
            raise ValueError("give either model, for a new one, or init")
        if self.adapter is not None and self.init is None:
            raise ValueError(
                "adapter changes a model that has learnt already; name its job with init, not model"
            )
        every = self.train.validate_every
        if self.how.milestones is not None and every and self.how.milestones.every % every:
            raise ValueError(f"how.milestones.every must be a multiple of train.validate_every, {every}")
        return self


class PretrainJob(training.Beginnings):
    """Writes a Hugging Face model folder, and `adapter/` in it where adapters were trained."""

    kind: ClassVar[str] = "pretrain"
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 2  # 2: Muon takes fused projections one by one
    Config: ClassVar[type[JobConfig]] = PretrainConfig

    def check(self, config: PretrainConfig, base: Path) -> Sequence[str]:
        if config.model and config.model.rope.scaling == "dynamic" and config.model.rope.original_positions:
            raise ShunterError(
                "dynamic scaling stretches from the rows' length, whatever original_positions says",
                where="model.rope.original_positions",
                mend="Leave it out.",
            )
        adapters.check(config.adapter, config.train, config.how)
        return training.check_how(config.how, config.train, base, config.model)

    def check_graph(self, node: Node, graph: Graph) -> Sequence[str]:
        return layouts.check_graph(node, graph)

    def disk_bytes(self, config: PretrainConfig, base: Path) -> int:
        return training.disk_bytes(config.model, config.how) if config.model else 0

    def run(self, context: JobContext[PretrainConfig]) -> dict[str, Any]:
        if context.config.how.parallel is not None and context.world is None:
            return ranks.spread(context, context.config.how.parallel.located(context.base))
        import torch

        from shunter.data.tokens import TokenRows
        from shunter.models.decoder import Decoder
        from shunter.models.init import init_weights
        from shunter.models.spec import DecoderSpec

        tokens, adapter, fill = context.one("tokens").path, context.config.adapter, None
        if context.config.model is None:
            folder, spread = context.one("init").path, context.world is not None
            decoder, fill = adapters.load(folder, adapter, context.config.seed, laid_out=spread)
        else:
            rows = TokenRows(tokens / "train")
            shape = context.config.model.model_dump()
            spec = DecoderSpec(**shape, vocab_size=rows.vocab_size, max_positions=rows.row_length)
            # On several ranks each draws what it holds: there need not be room for the whole.
            with torch.device("meta" if context.world is not None else "cpu"):
                decoder = Decoder(spec)
            if context.world is None:
                init_weights(decoder, context.config.seed)
        before = foretold.of_run(context) if context.world is None else None
        wanted, milestone = context.config.how.milestones, None
        if wanted is not None:
            last, seed = context.config.train.steps, context.config.seed
            milestone = partial(tracker, wanted, tokens=tokens, events=context.events, seed=seed, last=last)
        metrics = training.train(context, decoder, tokens, milestone, adapter, fill)
        return metrics if before is None else {**metrics, **foretold.account(context, before)}


JOB = PretrainJob()
