"""The first rows of a job's training order, from the artefact that it would read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.loader import Loader
from shunter.data.show import Row, show
from shunter.data.tokenizer import Tokenizer
from shunter.data.tokens import TokenRows
from shunter.recipe.graph import Graph
from shunter.recipe.plan import Planner
from shunter.recipe.store import Store

# The stream that orders the rows, as `Session.fresh` names it.
ORDER = "order"


def first_rows(graph: Graph, store: Store, name: str, skip: int, count: int, split: str) -> list[Row]:
    """Rows `skip`.. of the order in which job `name` sees them (held-out rows: of their own order).

    Raises ShunterError when the job has no rows, or they are not made yet.
    """
    wanted = graph.named(name)[0]
    node = graph.nodes[wanted]
    source = wanted if node.job.produces == "tokens" else None
    if source is None:
        source = next((up for up in node.upstream if graph.nodes[up].job.produces == "tokens"), None)
    if source is None:
        able = [n for n, other in graph.nodes.items() if other.job.produces in ("tokens", "model")]
        raise ShunterError(
            f"{name} ({node.kind}) neither makes rows nor trains on them", mend=f"Ask for {', '.join(able)}."
        )
    made = next(step.artefact for step in Planner(graph, store).plan() if step.node.name == source)
    if made is None:
        raise ShunterError(
            f"the rows of {source} are not made yet",
            mend=f"Run `shunter run {_shown(graph.path)} --to {source}`.",
        )
    rows = TokenRows(made.path / split)
    tokenizer = Tokenizer.load(made.path / "tokenizer")
    if split == "train" and source != wanted:
        loader = Loader(rows, derive_seed(node.config.seed, ORDER))
        numbers = loader.take(skip + min(count, rows.num_rows))[skip:]
    else:
        numbers = np.arange(min(skip, rows.num_rows), min(skip + count, rows.num_rows))
    return [show(rows, tokenizer, int(number)) for number in numbers]


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
