"""What a plan's numbers rest on, in sentences: what was fitted, what is a guess, what goes beyond any
measurement.

Imports without torch.
"""

from __future__ import annotations

from shunter.plan import compute, reach
from shunter.plan.choices import Question
from shunter.plan.fabric import set_of
from shunter.plan.practice import Coefficients

ALWAYS = ("products",)  # said even where it is at its default
UNNAMED = ("fixed", "kernel")  # of a kind of device, and of little weight


def rests_on(question: Question) -> list[str]:
    """Coefficients that are not at their defaults, and the speed of products in any case; rates that nobody
    has measured on these devices; sizes beyond those of any measured step; of a practice, what is assumed."""
    notes = []
    general, found = Coefficients(), question.coefficients
    for kind, known in found.kinds.items() or [("", found.known)]:
        for name, coefficient in known.items():
            if name == "grouped" and question.spec.experts is None:
                continue
            if name in ALWAYS or (coefficient != general.known.get(name) and name not in UNNAMED):
                of = f"{kind}: " if kind else ""
                notes.append(f"{of}{name} {coefficient.value:.4g}: {coefficient.source}")
    for device in set_of(question.fabric.kinds):
        if guesses := compute.guessed(question, device):
            format = compute.format_on(question, device)
            name = f"the {device.type} of {device.memory / 1e9:.3g} GB"
            notes.append(
                f"guesses, in the ratios of an H100: rates of {name} in {format}, shapes {', '.join(guesses)}"
            )
    notes += reach.beyond(question)
    if "assumed" in (source := question.practice.source):
        notes.append(f"{question.practice.name}: {source}")
    return notes
