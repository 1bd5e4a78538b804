"""The job `sft`: a model learns to answer, from conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import Field, model_validator

from shunter.jobs import adapters, foretold, layouts, ranks, training
from shunter.recipe.graph import Graph, Node
from shunter.recipe.job import Input, JobConfig, JobContext
from shunter.surgery.config import AdapterConfig
from shunter.train.config import TrainConfig, TrainHow

Like = Literal["lab", "tulu"]


def _as_there(like: Like, steps: int) -> dict[str, Any]:
    """What the two reference configurations of arXiv 2412.13337 say of an optimizer, for so many steps."""
    both = {"optimizer": "adamw", "lr": 2e-5}
    if like == "lab":  # no warm-up and no decay, which cost nothing there
        return {**both, "schedule": "constant", "warmup": 0}
    return {**both, "schedule": "wsd", "decay": 1.0, "final": 0.0, "warmup": round(0.03 * steps)}


def filled(data: Any) -> Any:
    """A configuration as written, with what `train` leaves out filled in: by `like`; as `lab` where all
    weights are trained and no rate is named, since what suits a new model ruins one that has learnt."""
    data = adapters.choose_optimizer(data)
    if not isinstance(data, dict) or not isinstance(data.get("train"), dict):
        return data
    train, like = data["train"], data.get("like")
    if like is None and "lr" not in train and data.get("adapter") is None:
        like = "lab"
    steps = train.get("steps")
    if like not in get_args(Like) or not isinstance(steps, int):
        return data  # told by the fields themselves
    return {**data, "train": {**_as_there(cast(Like, like), steps), **train}}


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
    like: Like | None = Field(
        None,
        exclude=True,  # what it stands for is in `train`
        description="What `train` leaves out is as in arXiv 2412.13337, 2e-5 by AdamW: lab, constant; tulu, "
        "warmed up and falling to zero. Default: lab where no rate is named and all weights are trained.",
    )
    train: TrainConfig = Field(description="How long, how fast, with which optimizer.")
    how: TrainHow = Field(default_factory=TrainHow, description="Choices that must not change the result.")

    _filled = model_validator(mode="before")(filled)

    @model_validator(mode="after")
    def _all_weights(self) -> SftConfig:
        if self.like is not None and self.adapter is not None:
            raise ValueError("like tells rates for all weights, and adapters want higher ones: name train.lr")
        return self


class SftJob(training.Beginnings):
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
