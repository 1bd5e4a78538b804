"""A small ladder for `shunter plan --time`: a recipe's training made with tiny models, on this machine.

Five runs: three sizes on as many tokens, and the middle one on a half and on a quarter of them. Each is a job
in a store: what was made is not made again, and what was killed goes on. Imports without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderShape
from shunter.plan.afford import LAW, LAWS, law_loss
from shunter.plan.own_law import OwnLaw, Point, own_law
from shunter.recipe.artefact import Artefact
from shunter.recipe.graph import Graph, Node
from shunter.train.config import TrainConfig

DIMS = (64, 96, 128)
HEAD = 32
MIDDLE = 1
PARTS = (2, 4)  # of the tokens, that the middle one sees too
LEAST = 20  # steps of the shortest run


@dataclass(frozen=True)
class Rung:
    """A run. parameters: of the model; tokens: that it saw; loss: of held-out text, nats a token; seconds,
    predicted: of a step, none where there is no prediction; law: what published ones say of its size."""

    dim: int
    layers: int
    parameters: int
    tokens: int
    epochs: float
    loss: float
    seconds: float | None
    predicted: float | None
    law: dict[str, float]


@dataclass(frozen=True)
class Ladder:
    """own: the line through the rungs. row: tokens."""

    recipe: str
    job: str
    row: int
    rungs: tuple[Rung, ...]
    own: OwnLaw

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        from dataclasses import asdict

        return asdict(self)


def climb(
    recipe: Path, job: str | None, tokens: float, folder: Path, say: Callable[[str], None] = lambda line: None
) -> Ladder:
    """Run what is not there yet. tokens: of the longest runs. folder: of the store.

    Raises ShunterError for a job that does not begin a new model, for too few tokens, and what a run raises.
    """
    from shunter.jobs.layouts import job_to_lay_out
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.runner import run_graph
    from shunter.recipe.store import Store

    graph = load_recipe(recipe, [], KINDS)
    node = job_to_lay_out(graph, job)
    shape, train = getattr(node.config, "model", None), getattr(node.config, "train", None)
    if not isinstance(shape, DecoderShape) or not isinstance(train, TrainConfig):
        raise ShunterError(
            f"{node.name} does not begin a new model, of which smaller ones could be made",
            where=node.where,
            mend="Name a pretrain job with a model: by --job.",
        )
    if graph.named(node.stem) != [node.name]:
        raise ShunterError(f"{node.stem} is swept", where=node.where, mend="Name a recipe without a matrix.")
    row = _row(graph, node)
    wanted = [(dim, 1) for dim in DIMS] + [(DIMS[MIDDLE], part) for part in PARTS]
    lengths = [round(tokens / part / train.batch_rows / row) for _, part in wanted]
    if min(lengths) < LEAST:
        raise ShunterError(
            f"{tokens:,.0f} tokens are {min(lengths)} steps of the shortest run, fewer than {LEAST}",
            mend=f"Give at least {LEAST * max(PARTS) * train.batch_rows * row:,} tokens.",
        )
    store, rungs = Store(folder), []
    milestones = getattr(node.config.how, "milestones", None) is not None
    for number, ((dim, _), steps) in enumerate(zip(wanted, lengths, strict=True)):
        say(f"rung {number + 1} of {len(wanted)}: width {dim}, {steps} steps")
        changes = _changes(node.stem, shape, train, dim, steps, milestones)
        made = run_graph(load_recipe(recipe, changes, KINDS), store, last=node.stem, quiet=True)
        rungs.append(_rung(made[node.name], made[node.inputs["tokens"][0]], smaller(shape, dim)))
    points = [Point(each.parameters, each.tokens, each.loss) for each in rungs]
    _, _, a, _, b = LAWS[LAW]
    return Ladder(str(recipe), node.name, row, tuple(rungs), own_law(points, (a, b)))


def smaller(shape: DecoderShape, dim: int) -> DecoderShape:
    """The same sort of decoder with this width, a layer for 32 of it, and no experts."""
    heads = dim // HEAD
    shared = max(1, shape.num_heads // shape.num_kv_heads)
    return shape.model_copy(
        update={
            "dim": dim,
            "num_layers": dim // HEAD,
            "num_heads": heads,
            "num_kv_heads": max(1, heads // shared) if heads % shared == 0 else heads,
            "head_dim": HEAD,
            "ffn_dim": -(-8 * dim // 3 // HEAD) * HEAD,
            "experts": None,
            "sliding_window": None,
        }
    )


def _row(graph: Graph, node: Node) -> int:
    from shunter.jobs.layouts import known

    found = known(graph, node)
    if found is None:
        raise ShunterError(f"the rows of {node.name} are not told by the recipe", where=node.where)
    return found.row_length


def _changes(
    job: str, shape: DecoderShape, train: TrainConfig, dim: int, steps: int, milestones: bool
) -> Sequence[str]:
    told = smaller(shape, dim).model_dump(mode="json", exclude_defaults=True)
    at = f"jobs.{job}"
    changes = [
        f"{at}.model={json.dumps(told)}",
        f"{at}.train.steps={steps}",
        f"{at}.train.warmup={min(train.warmup, steps // 10)}",
        f"{at}.train.validate_every=0",
        f"{at}.how.parallel=null",
        *([f"{at}.how.milestones=null"] if milestones else []),
        f"{at}.how.log_every={max(1, min(10, steps // 10))}",
        f"{at}.how.micro_batch={train.batch_rows}",
    ]
    return [*changes, *([f"{at}.train.restart=null"] if train.restart is not None else [])]


def _rung(artefact: Artefact, rows: Artefact, shape: DecoderShape) -> Rung:
    from shunter.data.tokens import TokenRows

    metrics: dict[str, Any] = artefact.manifest.metrics
    loss = metrics.get("heldout_loss")
    if not isinstance(loss, int | float):
        raise ShunterError(
            "the ladder compares held-out losses, and the run has none",
            where=str(artefact.path),
            mend="Hold some of the text out (heldout: of the corpus).",
        )
    parameters, tokens = int(metrics["parameters"]), int(metrics["tokens"])
    there = TokenRows(rows.path / "train")
    epochs = tokens / max(there.num_rows * there.row_length, 1)
    account = metrics.get("account", {})
    law = {name: law_loss(name, parameters, tokens) for name in LAWS}
    return Rung(
        shape.dim, shape.num_layers, parameters, tokens, epochs, float(loss), account.get("step_seconds"),
        account.get("plan_step_seconds"), law,
    )  # fmt: skip
