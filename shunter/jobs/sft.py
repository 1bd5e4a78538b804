"""The job `sft`: a model learns to answer, from conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from shunter.jobs import adapters, foretold, layouts, ranks, training
from shunter.recipe.graph import Graph, Node
from shunter.recipe.job import Input, JobConfig, JobContext
from shunter.surgery.config import AdapterConfig
from shunter.train.config import TrainConfig, TrainHow


class SftConfig(JobConfig):
    """Tunes a model on rows of conversations, by default on what the assistant says in them only."""

    model: Annotated[str, Input("model")] = Field(description="Job whose model is tuned.")
    tokens: Annotated[str, Input("tokens")] = Field(description="Job that made the rows.")
    adapter: AdapterConfig | None = Field(
        None,
        exclude_if=lambda value: (
            value is None
        ),  # jobs without one are those that they were before there was any
        description="Train low-rank adapters instead of all weights, and merge them.",
    )
    train: TrainConfig = Field(description="How long, how fast, with which optimizer.")
    how: TrainHow = Field(default_factory=TrainHow, description="Choices that must not change the result.")

    _optimizer = model_validator(mode="before")(adapters.choose_optimizer)


class SftJob:
    """Writes a Hugging Face model folder, and `adapter/` in it where adapters were trained."""

    kind: ClassVar[str] = "sft"
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 2  # 2: Muon takes fused projections one by one
    Config: ClassVar[type[JobConfig]] = SftConfig

    def check(self, config: SftConfig, base: Path) -> Sequence[str]:
        adapters.check(config.adapter, config.train, config.how)
        return training.check_how(config.how, config.train, base)

    def check_graph(self, node: Node, graph: Graph) -> Sequence[str]:
        return layouts.check_graph(node, graph)

    def run(self, context: JobContext[SftConfig]) -> dict[str, Any]:
        if context.config.how.parallel is not None and context.world is None:
            return ranks.spread(context, context.config.how.parallel.located(context.base))
        adapter = context.config.adapter
        folder, spread = context.one("model").path, context.world is not None
        decoder, fill = adapters.load(folder, adapter, context.config.seed, laid_out=spread)
        before = None if spread else foretold.of_run(context)
        metrics = training.train(context, decoder, context.one("tokens").path, adapter=adapter, fill=fill)
        return metrics if before is None else {**metrics, **foretold.account(context, before)}


JOB = SftJob()
