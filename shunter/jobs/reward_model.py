"""The job `reward_model`: a model learns which of two answers people or rules prefer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from shunter.jobs import ranks, taught
from shunter.post.config import LaidOutHow, PostTrain
from shunter.post.layout import check_parallel
from shunter.recipe.job import Input, JobConfig, JobContext


class RewardModelConfig(JobConfig):
    """Trains a model with a head of one number on pairs of answers (Bradley-Terry)."""

    model: Annotated[str, Input("model")] = Field(description="Job whose model it begins with.")
    pairs: Annotated[str, Input("preferences")] = Field(description="Job that made the pairs.")
    centre: float = Field(0.01, ge=0, description="Weight of the squared sum of a pair's rewards.")
    batch_pairs: int = Field(16, ge=1, description="Pairs in one step.")
    validate_every: int = Field(0, ge=0, description="Steps between validations; 0: at the end only.")
    train: PostTrain = Field(description="How long, how fast, with which optimizer.")
    how: LaidOutHow = Field(
        default_factory=LaidOutHow, description="Choices that must not change the result."
    )


class RewardModelJob:
    """Writes a Hugging Face model folder with value.safetensors, the head, in it."""

    kind: ClassVar[str] = "reward_model"
    produces: ClassVar[str] = "reward"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = RewardModelConfig

    def check(self, config: RewardModelConfig, base: Path) -> Sequence[str]:
        taught.check_how(config.how)
        check_parallel(config.how, config.train, config.batch_pairs, base, value=True)
        return []

    def run(self, context: JobContext[RewardModelConfig]) -> dict[str, Any]:
        if context.config.how.parallel is not None and context.world is None:
            return ranks.spread(context, context.config.how.parallel.located(context.base))
        from shunter.jobs import pupils
        from shunter.post.preference import BradleyTerry
        from shunter.post.preferences import Preferences
        from shunter.post.prompts import read_pairs
        from shunter.post.reward_model import new_head, save_head

        config = context.config
        folder, pairs = context.one("model").path, context.one("pairs").path
        tokenizer, model = taught.opened(folder), pupils.Model.open(folder, context)
        room = model.spec.max_positions
        train = read_pairs(pairs / "train.jsonl", tokenizer, room).closed()
        heldout = read_pairs(pairs / "heldout.jsonl", tokenizer, room, empty=True).closed()
        course = pupils.course(context)
        head = new_head(model.spec.dim)
        lessons = Preferences(
            course,
            model.pupil(course, config.batch_pairs, (train, heldout), head),
            BradleyTerry(config.centre),
            train,
            heldout,
            batch_pairs=config.batch_pairs,
            validate_every=config.validate_every,
            reference=False,
            seed=config.seed,
        )
        course.run(lessons)
        if (whole := model.whole()) is not None:
            taught.save(whole, folder, context.out)
            save_head(head, context.out)
        return {
            **{name.replace("/", "_"): value for name, value in lessons.final.items()},
            "pairs": train.num_rows,
            "too_long": train.too_long + heldout.too_long,
            "skipped": len(course.skipped),
            "parameters": model.spec.num_parameters,
            **model.account(lessons.shape, scores=False),
        }


JOB = RewardModelJob()
