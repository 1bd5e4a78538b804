"""The job `dpo`: a model learns to prefer the better one of two answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from shunter.jobs import ranks, taught
from shunter.post.config import LaidOutHow, PostTrain
from shunter.post.layout import check_parallel
from shunter.recipe.job import Input, JobConfig, JobContext
from shunter.surgery.config import AdapterConfig


class DpoConfig(JobConfig):
    """Tunes a model on pairs of answers, without rewards and without sampling."""

    model: Annotated[str, Input("model")] = Field(description="Job whose model is tuned, and the reference.")
    pairs: Annotated[str, Input("preferences")] = Field(description="Job that made the pairs.")
    loss: Literal["dpo", "dpo_norm", "simpo"] = Field(
        "dpo_norm", description="dpo; dpo_norm: by means over tokens; simpo: without a reference."
    )
    beta: float | None = Field(
        None, gt=0, description="Factor of log-probabilities; default: dpo 0.1, dpo_norm 5, simpo 2."
    )
    gamma: float = Field(1.0, ge=0, description="simpo: the margin.")
    smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="dpo: share of pairs that are the wrong way round."
    )
    batch_pairs: int = Field(16, ge=1, description="Pairs in one step.")
    validate_every: int = Field(0, ge=0, description="Steps between validations; 0: at the end only.")
    adapter: AdapterConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # jobs without one are what they were before there was any
        description="Train low-rank adapters instead of all weights, and merge them; the reference is the "
        "model under them.",
    )
    train: PostTrain = Field(description="How long, how fast, with which optimizer.")
    how: LaidOutHow = Field(
        default_factory=LaidOutHow, description="Choices that must not change the result."
    )


class DpoJob:
    """Writes a Hugging Face model folder, and `adapter/` in it where adapters were trained."""

    kind: ClassVar[str] = "dpo"
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = DpoConfig

    def check(self, config: DpoConfig, base: Path) -> Sequence[str]:
        taught.check_how(config.how)
        check_parallel(config.how, config.train, config.batch_pairs, base, adapter=config.adapter is not None)
        return []

    def run(self, context: JobContext[DpoConfig]) -> dict[str, Any]:
        if context.config.how.parallel is not None and context.world is None:
            return ranks.spread(context, context.config.how.parallel.located(context.base))
        from shunter.jobs import pupils
        from shunter.post.objective import ScoreObjective
        from shunter.post.preference import DPO, SimPO
        from shunter.post.preferences import Preferences
        from shunter.post.prompts import read_pairs

        config = context.config
        folder, pairs = context.one("model").path, context.one("pairs").path
        tokenizer, model = taught.opened(folder), pupils.Model.open(folder, context, config.adapter)
        room = model.spec.max_positions + 1  # the last token is predicted and not seen
        train = read_pairs(pairs / "train.jsonl", tokenizer, room)
        heldout = read_pairs(pairs / "heldout.jsonl", tokenizer, room, empty=True)
        objective: ScoreObjective
        if config.loss == "simpo":
            objective = SimPO(config.beta or 2.0, config.gamma)
        else:
            normalised = config.loss == "dpo_norm"
            beta = config.beta or (5.0 if normalised else 0.1)
            objective = DPO(beta, normalised=normalised, smoothing=config.smoothing)
        course = pupils.course(context)
        lessons = Preferences(
            course,
            model.pupil(course, config.batch_pairs, (train, heldout)),
            objective,
            train,
            heldout,
            batch_pairs=config.batch_pairs,
            validate_every=config.validate_every,
            reference=config.loss != "simpo",
            seed=config.seed,
        )
        course.run(lessons)
        if (whole := model.whole()) is not None:
            taught.save(whole, folder, context.out, config.adapter)
        return {
            **{name.replace("/", "_"): value for name, value in lessons.final.items()},
            "pairs": train.num_rows,
            "too_long": train.too_long + heldout.too_long,
            "skipped": len(course.skipped),
            "parameters": model.spec.num_parameters,
            **model.account(lessons.shape),
        }


JOB = DpoJob()
