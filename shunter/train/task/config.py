"""Configuration of a person's own task. Imports without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.train.config import Parallel, TrainHow

# Keys of how.parallel that any model may have.
OWN_AXES = frozenset({"dp", "fsdp", "tp", "timeout", "timeline"})


class Best(Config):
    """Which state of the model is kept."""

    metric: str = Field("loss", description="`loss` on the held-out examples, or what `metrics` returns.")
    mode: Literal["min", "max"] = Field("min", description="Whether the lowest or the highest is best.")


class TaskConfig(Config):
    """One optimisation with AdamW."""

    epochs: int = Field(1, ge=1, description="Passes over the examples; none is left out.")
    batch: int = Field(16, ge=1, description="Examples in one step, over all processes.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2, description="AdamW's decay rates.")
    eps: float = Field(1e-8, gt=0, description="AdamW's denominator offset.")
    weight_decay: float = Field(0.01, ge=0, description="Decay of tensors with at least two dims.")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        "constant", description="Shape of the learning rate: constant, cosine, or warm-up/stable/decay."
    )
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    decay: float = Field(0.3, gt=0, le=1, description="Share of the steps in which wsd decays.")
    final: float = Field(0.0, ge=0, le=1, description="Last learning rate as a share of the peak.")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; none: as it is.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: matrix products in bfloat16, weights in what the model has."
    )
    shuffle: bool = Field(True, description="Another order in each epoch, from the seed.")
    evaluate_every: int = Field(0, ge=0, description="Steps between evaluations; 0: after each epoch.")
    evaluate_first: bool = Field(True, description="Try evaluation on one batch before training.")
    best: Best = Field(
        default_factory=Best, description="Which state is kept, where there are held-out examples."
    )
    rules: list[str] = Field(
        default_factory=list, description="Under tp: how weights are cut, such as `lm_head=whole`."
    )

    @model_validator(mode="after")
    def _curve(self) -> TaskConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be in [0, 1)")
        return self


def check_parallel(how: TrainHow) -> None:
    """Raise ShunterError for a layout that a model without declarations cannot have."""
    if how.compile:
        raise ShunterError(
            "a model of your own is not compiled here", where="how.compile", mend="Leave it out."
        )
    if getattr(how, "checkpoint_async", False):
        raise ShunterError(
            "a task of your own waits for its checkpoints", where="how.checkpoint_async", mend="Leave it out."
        )
    if how.parallel is None:
        return
    check_axes(how.parallel)


def check_axes(parallel: Parallel) -> None:
    """As `check_parallel`."""
    parallel.grid  # noqa: B018  (degrees that do not fit each other are refused)
    defaults = {name: field.default for name, field in Parallel.model_fields.items()}
    for name in sorted(parallel.model_fields_set - OWN_AXES):
        if getattr(parallel, name) != defaults[name]:
            raise ShunterError(
                f"{name} needs a model whose layers declare how they are cut",
                where=f"how.parallel.{name}",
                mend="Use tp or fsdp, with dp.",
            )
    if parallel.tp > 1 and parallel.fsdp > 1:
        raise ShunterError(
            "tp and fsdp together are not there for a model of your own",
            where="how.parallel",
            mend="Use one of them, with dp.",
        )
