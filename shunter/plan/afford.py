"""The question turned round: which model, and how many tokens, a cluster can afford in a time.

For each size of a ladder of decoders the fastest layout says how many tokens go through, and a published law
says what loss to expect. Imports without torch.

The laws are of validation loss in nats a token on their authors' text: L = E + A / N^a + B / D^b. They order
sizes; the level is another on other text. A ladder measured on one's own text is not built.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec
from shunter.plan.choices import Question
from shunter.plan.search import search

# E, A, a, B, b. The second is a re-estimate from the first one's own figures.
LAWS = {
    "arXiv 2203.15556": (1.69, 406.4, 0.34, 410.7, 0.28),
    "arXiv 2404.10102": (1.8172, 482.01, 0.3478, 2085.43, 0.3658),
}
LAW = "arXiv 2404.10102"
EPOCHS = 4  # through the data, beyond which more of the same teaches little (arXiv 2305.16264)
DIMS = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 6144, 8192, 12288, 16384)
STEP = 1 << 19  # tokens of a step for small models; large ones take four times as many
FINALISTS = 1


@dataclass(frozen=True)
class Affordable:
    """steps: of `batch` rows. epochs: through the data, where their size is told. losses: by law."""

    spec: DecoderSpec
    batch: int
    tokens: float
    steps: int
    step_seconds: float
    layout: str
    epochs: float | None
    losses: dict[str, float]


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


def afford(question: Question, seconds: float, data: float | None = None) -> list[Affordable]:
    """What the question's cluster and practice can train in `seconds`, by size; the least loss by LAW first.

    question: its model and batch are not looked at, but for the vocabulary. data: tokens there are; a model
    passes through them EPOCHS times at most. Raises ShunterError where not even the smallest fits.
    """
    world, row = question.fabric.world, question.row
    found = []
    for spec in ladder(question.spec.vocab_size, row):
        tokens = STEP * (4 if spec.num_parameters > 3e9 else 1)
        batch = max(1, round(tokens / row / world)) * world
        asked = replace(question, spec=spec, batch=batch)
        try:
            best = search(asked, top=1, finalists=FINALISTS).plans[0].prediction
        except ShunterError:
            break  # larger ones do not fit either
        steps = int(seconds / best.seconds)
        if data is not None:
            steps = min(steps, int(EPOCHS * data / asked.tokens))
        if steps < 100:
            break
        through = float(steps * asked.tokens)
        losses = {name: _loss(law, spec.num_parameters, through) for name, law in LAWS.items()}
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
            )
        )
    if not found:
        raise ShunterError(
            f"in {seconds:,.0f} s not one model takes a hundred steps on {question.fabric.name}",
            mend="Give more time, or a larger cluster.",
        )
    return sorted(found, key=lambda each: each.losses[LAW])


def _told(key: str, value: object) -> bool:
    return key in ("pp", "dp", "fsdp", "cp", "tp") and value != 1


def _loss(law: tuple[float, float, float, float, float], parameters: float, tokens: float) -> float:
    level, a, alpha, b, beta = law
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
