"""How far the counted cost model was held against measured steps, and how far beyond them it answers.

Formulas go on for ever; what they leave out does not show where nothing was measured. Up to FAR times the
largest of the steps that predictions were held against (`tests/plan/published.yaml`) an answer is given and
marked; beyond it is refused, unless somebody asks for it all the same. A profile has bounds of its own
(`plan.profile`). Imports without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from shunter.config.errors import ShunterError
from shunter.plan.choices import Question

FAR = 4.0


@dataclass(frozen=True)
class Bound:
    """what: of a question, in words. asked: how much. most: the most of any step that a prediction was held
    against, and where."""

    what: str
    asked: float
    most: float
    where: str

    @property
    def times(self) -> float:
        return self.asked / self.most

    def __str__(self) -> str:
        return (
            f"{self.what} ({self.asked:,.0f}) are {self.times:.3g} times the most of any measured step that "
            f"the cost model was held against ({self.most:,.0f}: {self.where})"
        )


def bounds(question: Question) -> list[Bound]:
    """Each size of a question that counts."""
    return [
        Bound("tokens of a row", question.row, 262_144, "torchtitan on 512 H100"),
        Bound("devices", question.fabric.world, 3_072, "Megatron-LM, A100"),
        Bound("parameters", question.spec.num_parameters, 1.01e12, "Megatron-LM, A100"),
    ]


def beyond(question: Question) -> list[str]:
    """Marks of an answer that goes beyond what was measured; none of one that rests on a profile."""
    if question.profile is not None:
        return []
    return [f"extrapolated: {each}" for each in bounds(question) if each.times > 1]


def must_reach(question: Question) -> None:
    """Raise ShunterError where a question asks for FAR times as much as was ever measured, or more."""
    for each in bounds(question):
        if question.profile is None and each.times > FAR:
            raise ShunterError(
                f"no prediction reaches so far: {each}",
                mend=f"Ask for at most {FAR * each.most:,.0f} {each.what}, measure on your machine with "
                "`shunter probe --model` and plan with --profile, or give `shunter plan` --extrapolate for "
                "what the formulas say all the same.",
            )
