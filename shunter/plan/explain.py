"""Why not this layout, and what would help. Imports without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.plan import placing
from shunter.plan.choices import SCHEDULES, Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import RECOMPUTE
from shunter.plan.reasons import why_none
from shunter.plan.score import Prediction, predict
from shunter.plan.search import Found, lost_because, search
from shunter.plan.space import space

NUMBERS = ("pp", "dp", "fsdp", "cp", "tp", "ep", "etp", "microbatch", "chunks")
NAMES = {"schedule": SCHEDULES, "recompute": RECOMPUTE, "layers": ("own", "alike")}
FEW = 6  # finalists of each perturbed search


def parse(text: str) -> dict[str, int | str]:
    """`tp=8,pp=4,schedule=1f1b` as a mapping. Raises ShunterError for anything else."""
    found: dict[str, int | str] = {}
    for part in text.split(","):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not value:
            raise ShunterError(f"{part!r} names no value", mend="Write it as tp=8,pp=4.")
        if key not in (*NUMBERS, *NAMES):
            guess = nearest(key, (*NUMBERS, *NAMES))
            raise ShunterError(
                f"{key!r} is nothing that a layout has",
                mend=f"Did you mean {guess}?" if guess else f"Known are {', '.join((*NUMBERS, *NAMES))}.",
            )
        if key in found:
            raise ShunterError(f"{key} is given twice", mend="Give it once.")
        if key in NAMES:
            if value not in NAMES[key]:
                raise ShunterError(f"{key} is {value!r}", mend=f"Known are {', '.join(NAMES[key])}.")
            found[key] = value
        elif not value.isdecimal() or int(value) < 1:
            raise ShunterError(f"{key} is {value!r}", mend="It is a whole number of at least 1.")
        else:
            found[key] = int(value)
    return found


@dataclass(frozen=True)
class Reason:
    """Of a layout against the best one. prediction: none where there is no such layout."""

    asked: Mapping[str, int | str]
    sentence: str
    prediction: Prediction | None
    best: Prediction

    def terms(self) -> dict[str, tuple[float, float]]:
        """Name -> (of this layout, of the best): seconds by term, and bytes of the fullest rank."""
        if self.prediction is None:
            return {}
        names = ("seconds", "compute", "communication", "bubble", "fullest")
        return {name: (getattr(self.prediction, name), getattr(self.best, name)) for name in names}


def why(found: Found, asked: Mapping[str, int | str]) -> Reason:
    """What the best layout with the asked degrees loses to the best of all; what is not asked is free."""
    best, question = found.plans[0].prediction, found.question
    try:
        there = search(
            question, fixed=asked, room=found.room, objective=found.objective, top=1, finalists=8, hints=False
        )
    except ShunterError:
        choices = space(question, asked)
        if not len(choices):
            return Reason(asked, f"cannot be: {why_none(question, asked)[0]}", None, best)
        from shunter.plan.estimate import estimate  # the smallest of those that do not fit

        smallest = choices.take([int(estimate(question, choices).bytes.argmin())])
        prediction = predict(question, smallest, found.room)
        over = prediction.fullest - found.room
        if over <= 0:  # where devices differ: the largest would do
            return Reason(asked, "does not fit: in no order do its stages fit the devices", prediction, best)
        parts = max(prediction.bytes, key=lambda parts: sum(parts.values()))
        most = max(parts, key=parts.__getitem__)
        return Reason(
            asked,
            f"does not fit: {prediction.fullest / 1e9:.1f} GB of a device, {over / 1e9:.1f} GB too much; "
            f"most is {most} ({parts[most] / 1e9:.1f} GB)",
            prediction,
            best,
        )
    prediction = there.plans[0].prediction
    if prediction.settings == best.settings:
        return Reason(asked, "this is the best layout", prediction, best)
    return Reason(asked, lost_because(prediction, best, found.objective), prediction, best)


def budget(found: Found, tokens: float) -> dict[str, float | None]:
    """Steps, seconds and cost of so many tokens under the best plan; cost: none where there is no price."""
    question, best = found.question, found.plans[0].prediction
    steps = math.ceil(tokens / question.tokens)
    seconds = steps * best.seconds
    price = question.fabric.price_per_hour
    cost = None if price is None else seconds / 3600 * price
    return {"tokens": tokens, "steps": steps, "seconds": seconds, "cost": cost}


def operations(question: Question, prediction: Prediction) -> dict[str, float]:
    """FLOPs of a step by the model's formula, and with what is computed again: of a layer its forward, of a
    selective one half of it; of a stage's those micro-batches that go back at once are counted too."""
    spec, every = question.spec, question.flops
    forward = every / 3 - 2 * question.tokens * spec.vocab_size * spec.dim  # of all layers
    again = sum(prediction.recomputed) / spec.num_layers
    half = RECOMPUTE[prediction.choice.recompute[0]] == "selective"
    return {"step": every, "with_recomputation": every + forward * again * (0.5 if half else 1.0)}


@dataclass(frozen=True)
class Help:
    """A change of the question, and how many times more tokens a second it would give."""

    what: str
    times: float


def what_would_help(found: Found) -> list[Help]:
    """The question with one thing changed, and searched again; most helpful first.

    Each link twice as fast, half as much memory again, twice the rows of a step, products a quarter faster.
    """
    question = found.question
    before = question.tokens / found.plans[0].prediction.seconds
    tries: list[Try] = []
    if question.fabric.terrain is not None:
        return _helped(found, before, [*_varied(question.fabric.terrain.cluster, found), *_general(found)])
    names = ["links within a node", "links between nodes"]
    levels = question.fabric.levels
    if len(levels) == 1 and question.fabric.block < question.fabric.world:
        names = names[1:]
    for number, level in enumerate(levels):
        faster = (*levels[:number], replace(level, bandwidth=2 * level.bandwidth), *levels[number + 1 :])
        name = (
            "links within a package"
            if len(levels) == 3 and number == 0
            else names[min(number, len(names) - 1)]
        )
        tries.append(
            (
                f"{name} twice as fast",
                replace(question, fabric=replace(question.fabric, levels=faster)),
                found.room,
            )
        )
    kinds = tuple(
        kind.model_copy(update={"memory": 1.5 * kind.memory}) for kind in question.fabric.kinds[:1]
    ) * len(question.fabric.kinds)
    more = replace(question, fabric=replace(question.fabric, kinds=kinds))
    if len({id(kind) for kind in question.fabric.kinds}) == 1:
        tries.append(("half as much memory again", more, 1.5 * found.room))
    return _helped(found, before, [*tries, *_general(found)])


Try = tuple[str, Question, float]


def _general(found: Found) -> list[Try]:
    """What does not depend on how the cluster is described."""
    question = found.question
    quick = question.coefficients.but("a change to see", products=1.25 * question.coefficients["products"])
    return [
        ("twice the rows of a step", replace(question, batch=2 * question.batch), found.room),
        ("products a quarter faster", replace(question, coefficients=quick), found.room),
    ]


def _varied(cluster: Cluster, found: Found) -> Iterator[Try]:
    """Each link of a cluster whose links or devices differ twice as fast, by name; half as much memory
    again."""
    described, question = cluster.description, found.question
    for name, link in described.links.items():
        faster = link.model_copy(update={"bandwidth": 2 * link.bandwidth})
        other = described.model_copy(update={"links": {**described.links, name: faster}})
        fabric = Fabric.of(cluster.varied(other))
        yield f"links {name} twice as fast", replace(question, fabric=fabric), found.room
    larger = {
        name: kind.model_copy(update={"memory": 1.5 * kind.memory})
        for name, kind in described.devices.items()
    }
    fabric = Fabric.of(cluster.varied(described.model_copy(update={"devices": larger})))
    yield "half as much memory again", replace(question, fabric=fabric), 1.5 * found.room


def _helped(found: Found, before: float, tries: Sequence[Try]) -> list[Help]:
    helped = []
    for name, other, room in tries:
        try:
            changed = search(
                other,
                fixed=found.fixed,
                room=room,
                objective=found.objective,
                top=1,
                finalists=FEW,
                hints=False,
            )
        except ShunterError:
            continue
        # The same layout is there as well: what is changed makes nothing slower.
        same = placing.again(other, found.plans[0].prediction, room)
        seconds = min(changed.plans[0].prediction.seconds, math.inf if same is None else same.seconds)
        helped.append(Help(name, other.tokens / seconds / before))
    return sorted(helped, key=lambda each: -each.times)
