"""The question turned round: which model, and how many tokens, a cluster can afford in a time.

For each size of a ladder of decoders the fastest layout says how many tokens go through, and a published law
says what loss to expect. Imports without torch.

The laws are of validation loss in nats a token on their authors' text: L = E + A / N^a + B / D^b. They order
sizes; the level is another on other text. A ladder of small runs on one's own text is measured by
`shunter.jobs.ladder`, and its line (`plan.own_law`) stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec
from shunter.plan.choices import Question
from shunter.plan.own_law import OwnLaw
from shunter.plan.search import search

# E, A, a, B, b. The second is a re-estimate from the first one's own figures.
LAWS = {
    "arXiv 2203.15556": (1.69, 406.4, 0.34, 410.7, 0.28),
    "arXiv 2404.10102": (1.8172, 482.01, 0.3478, 2085.43, 0.3658),
}
LAW = "arXiv 2404.10102"
EPOCHS = 4  # through the data, beyond which more of the same teaches little (arXiv 2305.16264)
# Widths of whole heads, a fifth or so apart: models of about twice as many parameters each.
DIMS = (
    256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144,
    7168, 8192, 10240, 12288, 14336, 16384,
)  # fmt: skip
# Tokens of a step by parameters (table 2.1 of arXiv 2005.14165); between them a line of the logarithms.
STEPS = ((7.6e8, 5e5), (1.3e9, 1e6), (6.7e9, 2e6), (1.75e11, 3.2e6))
FINALISTS = 1
BEYOND = 4  # sizes larger than the best that are shown: the loss has one valley


@dataclass(frozen=True)
class Affordable:
    """steps: of `batch` rows. epochs: through the data, where their size is told. losses: by law. own: by the
    line through a ladder of runs on one's own text, and between what it is with any one run left out."""

    spec: DecoderSpec
    batch: int
    tokens: float
    steps: int
    step_seconds: float
    layout: str
    epochs: float | None
    losses: dict[str, float]
    own: tuple[float, float, float] | None = None


def ladder(words: int, row: int) -> list[DecoderSpec]:
    """Decoders of the Llama lineage, a width of 128 a layer, heads of 128 (64 below a width of 512)."""
    found = []
    for dim in DIMS:
        head = 128 if dim >= 512 else 64
        heads = dim // head
        keys = 8 if heads % 8 == 0 else heads
        found.append(
            DecoderSpec(
                vocab_size=words,
                dim=dim,
                num_layers=max(4, dim // 128),
                num_heads=heads,
                num_kv_heads=min(keys, heads),
                head_dim=head,
                ffn_dim=-(-8 * dim // 3 // 128) * 128,
                max_positions=row,
                tied=dim < 2048,
            )
        )
    return found


def afford(
    question: Question, seconds: float, data: float | None = None, own: OwnLaw | None = None
) -> list[Affordable]:
    """What the question's cluster and practice can train in `seconds`, by size; the least loss by LAW first.

    question: its model and batch are not looked at, but for the vocabulary. data: tokens there are; a model
    passes through them EPOCHS times at most. own: of a ladder, shown beside the laws. Sizes beyond the best
    are left out after BEYOND. Raises ShunterError where not even the smallest fits.
    """
    world, row = question.fabric.world, question.row
    found = []
    for spec in ladder(question.spec.vocab_size, row):
        batch = max(1, round(step_tokens(spec.num_parameters) / row / world)) * world
        asked = replace(question, spec=spec, batch=batch)
        try:
            best = search(asked, top=1, finalists=FINALISTS, hints=False).plans[0].prediction
        except ShunterError:
            break  # larger ones do not fit either
        steps = int(seconds / best.seconds)
        if data is not None:
            steps = min(steps, int(EPOCHS * data / asked.tokens))
        if steps < 100:
            break
        through = float(steps * asked.tokens)
        losses = {name: law_loss(name, spec.num_parameters, through) for name in LAWS}
        degrees = [f"{key} {value}" for key, value in best.choice.settings(0).items() if _told(key, value)]
        found.append(
            Affordable(
                spec,
                batch,
                through,
                steps,
                best.seconds,
                ", ".join(degrees) or "one device",
                None if data is None else through / data,
                losses,
                None
                if own is None
                else (
                    own.loss(spec.num_parameters, through),
                    *own.band(spec.num_parameters, through),
                ),
            )
        )
        best_size = min(range(len(found)), key=lambda n: found[n].losses[LAW])
        if len(found) - 1 - best_size >= BEYOND:
            break
    if not found:
        raise ShunterError(
            f"in {seconds:,.0f} s not one model takes a hundred steps on {question.fabric.name}",
            mend="Give more time, or a larger cluster.",
        )
    return sorted(found, key=lambda each: each.losses[LAW])


def _told(key: str, value: object) -> bool:
    return key in ("pp", "dp", "fsdp", "cp", "tp") and value != 1


def step_tokens(parameters: float) -> float:
    """Of a step, for a model of this size."""
    sizes, tokens = (np.log([pair[at] for pair in STEPS]) for at in (0, 1))
    return float(np.exp(np.interp(np.log(parameters), sizes, tokens)))


def law_loss(name: str, parameters: float, tokens: float) -> float:
    """Nats a token by a published law."""
    level, a, alpha, b, beta = LAWS[name]
    return level + a / parameters**alpha + b / tokens**beta


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_time(text: str) -> float:
    """12h, 3d or 45m, in seconds. Raises ShunterError for anything else."""
    number, unit = text.strip()[:-1], text.strip()[-1:].lower()
    try:
        found = float(number) * UNITS[unit]
        if not 0 < found < 1e10:
            raise ValueError
    except (ValueError, KeyError):
        raise ShunterError(f"{text!r} is no length of time", mend="Write it as 12h, 3d or 45m.") from None
    return found
