"""The layout of a recipe's job before anything is made: the model's shape from what the recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.jobs.imported import ImportConfig
from shunter.jobs.tokenizer import TokenizerConfig
from shunter.jobs.tokens import TokensConfig
from shunter.layout.described import Layout
from shunter.models.families import from_config
from shunter.models.spec import DecoderShape, DecoderSpec
from shunter.recipe import disk
from shunter.recipe.graph import Graph, Node
from shunter.train.config import AUTO, Parallel, TrainConfig, TrainHow
from shunter.train.layout_check import check_layout
from shunter.train.layout_describe import describe, host_bytes, must_fit, spec_settings
from shunter.train.layout_parts import Plan

GUESSED_VOCABULARY = 16384  # where no tokenizer's size is told


@dataclass(frozen=True)
class Known:
    """What a recipe tells of a job's model. row_length: tokens. guesses: sentences on what is not sure."""

    spec: DecoderSpec
    row_length: int
    guesses: tuple[str, ...] = ()


def known(graph: Graph, node: Node) -> Known | None:
    """Of a job that trains on rows; None where what makes its model tells nothing beforehand."""
    rows = _input(graph, node, "tokens")
    if rows is None or not isinstance(rows.config, TokensConfig):
        return None
    length = rows.config.row_length
    shape = getattr(node.config, "model", None)
    if isinstance(shape, DecoderShape):
        size, guesses = _vocabulary(graph, rows)
        whole = DecoderSpec(**shape.model_dump(), vocab_size=size, max_positions=length)
        return Known(whole, length, guesses)
    source = _input(graph, node, "init") or _input(graph, node, "model")
    found = None if source is None else _made(graph, source)
    return None if found is None else Known(found[0], length, found[1])


def _input(graph: Graph, node: Node, field: str) -> Node | None:
    names = node.inputs.get(field, ())
    return graph.nodes[names[0]] if len(names) == 1 else None


def made(graph: Graph, node: Node) -> DecoderSpec | None:
    """The model that a job makes; None where the recipe does not tell."""
    found = _made(graph, node)
    return None if found is None else found[0]


def _made(graph: Graph, node: Node) -> tuple[DecoderSpec, tuple[str, ...]] | None:
    """The model that a job makes."""
    if isinstance(node.config, ImportConfig):
        file = graph.base / node.config.path / "config.json"
        told = disk.read_json(file) if file.is_file() else None
        return None if told is None else (from_config(told, str(file)), ())
    found = known(graph, node)
    return None if found is None else (found.spec, found.guesses)


def _vocabulary(graph: Graph, rows: Node) -> tuple[int, tuple[str, ...]]:
    source = _input(graph, rows, "tokenizer")
    if source is not None and isinstance(source.config, TokenizerConfig):
        size = source.config.vocab_size
        return size, (f"a vocabulary of {size} is what {source.name} learns at most",)
    made = None if source is None else _made(graph, source)
    if made is not None:
        return made[0].vocab_size, made[1]
    return GUESSED_VOCABULARY, (f"a vocabulary of {GUESSED_VOCABULARY} is a guess",)


def check_graph(node: Node, graph: Graph) -> Sequence[str]:
    """What can be refused when the jobs that a training reads from are known: rows, heads, experts."""
    how, train = getattr(node.config, "how", None), getattr(node.config, "train", None)
    if not isinstance(how, TrainHow) or not isinstance(train, TrainConfig) or how.parallel is None:
        return []
    found, parallel = known(graph, node), how.parallel.located(graph.base)
    if found is not None:
        settled = parallel.settled(train.batch_rows, how.micro_batch)
        check_layout(found.spec, settled, settled.order(), found.row_length)
    return [] if parallel.plan in (None, AUTO) else must_match(graph, node, Path(str(parallel.plan)), found)


def must_match(graph: Graph, node: Node, path: Path, found: Known | None) -> Sequence[str]:
    """Warnings. Raises ShunterError where a plan was made for another model, batch, row or machine. found:
    None where the recipe does not tell the model, so that the machine alone can be looked at."""
    from shunter.jobs import machine, questions
    from shunter.plan.plan import Plan as Planned  # with numpy, which no command needs to start

    plan = Planned.load(path)
    if found is None:
        return machine.must_be_here(plan, node.config.how.device)  # type: ignore[attr-defined]
    asked = questions.trained(graph, node)
    plan.must_be_for(found.spec)
    for name, here, there in (("batch", asked.batch, plan.batch), ("row", asked.row, plan.sequence)):
        if here != there:
            raise ShunterError(
                f"the plan is for a {name} of {there}, the recipe has one of {here}",
                where="how.parallel.plan",
                mend="Plan again.",
            )
    said = [*machine.must_be_here(plan, asked.how.device)]
    if (mine := asked.practice_on(plan)) != plan.practice:
        said.append(
            f"the plan's times and bytes are those of {plan.practice}, and this job computes as {mine}"
        )
    return said


def job_to_lay_out(graph: Graph, name: str | None) -> Node:
    """The named job, else the one that has a layout, else the one that trains. Raises ShunterError."""
    if name is not None:
        node = graph.nodes[graph.named(name)[0]]
        if not isinstance(getattr(node.config, "how", None), TrainHow):
            raise ShunterError(f"{name} ({node.kind}) trains nothing", mend="Name a pretrain or sft job.")
        return node
    able = [node for node in graph.nodes.values() if isinstance(getattr(node.config, "how", None), TrainHow)]
    laid = [node for node in able if getattr(node.config.how, "parallel", None) is not None] or able
    if len(laid) > 1:
        names = ", ".join(node.name for node in laid)
        raise ShunterError(f"several jobs train: {names}", mend="Name one with --job.")
    if not laid:
        raise ShunterError("no job of the recipe trains", where=str(graph.path))
    return laid[0]


def laid_out(graph: Graph, node: Node, memory: int | None = None) -> Layout:
    """Its layout. memory: bytes that each rank has. Raises ShunterError for one that cannot be."""
    config: Any = node.config
    how, train = config.how, config.train
    assert isinstance(how, TrainHow)
    assert isinstance(train, TrainConfig)
    found = known(graph, node)
    if found is None:
        raise ShunterError(
            f"the model of {node.name} is not told by the recipe",
            where=node.where,
            mend="Name a pretrain job with a model:, or one that begins from an import.",
        )
    node.job.check(node.config, graph.base)
    parallel = (how.parallel or Parallel.model_validate({})).located(Path(graph.base))
    parallel = parallel.settled(train.batch_rows, how.micro_batch)
    bf16 = train.precision == "bf16"
    plan = Plan.make(found.spec, parallel, found.row_length, train.batch_rows, bf16=bf16)
    notes = list(found.guesses)
    if train.precision == "auto":
        notes.append("precision auto is counted as fp32")
    if getattr(config, "adapter", None) is not None:
        notes.append("counted as if all weights were trained: adapters have gradients and state of their own")
    settings = {
        "job": node.name,
        "parallel": parallel.model_dump(exclude={"timeout", "timeline"}),
        "model": spec_settings(found.spec),
        "row_length": found.row_length,
        "batch_rows": train.batch_rows,
        "optimizer": train.optimizer,
        "precision": train.precision,
    }
    layout = describe(plan, train.optimizer, settings, notes)
    if how.checkpoint_async:
        most = max(each.weights + each.optimizer for each in layout.ranks)
        layout.notes.append(f"checkpoint_async keeps up to {disk.human(most)} more in a rank's host memory")
    if most := max(host_bytes(plan, rank) for rank in range(plan.grid.size)):
        layout.notes.append(f"offload keeps up to {disk.human(most)} of a rank's layers in host memory")
    if memory is not None:
        must_fit(layout, memory, plan, train.optimizer, train.batch_rows)
    return layout


def compared(
    layout: Layout, recipe: Path, overrides: Sequence[str], others: Sequence[str], job: str | None
) -> dict[str, tuple[Any, Any]]:
    """What is not the same in another one: others is a saved layout's file, or more changes to the recipe."""
    from shunter.jobs.registry import KINDS  # it holds this module's jobs
    from shunter.recipe.graph import load_recipe

    files = [other for other in others if "=" not in other]
    if files and len(others) > 1:
        raise ShunterError(
            "--diff takes one saved layout, or changes to the recipe", mend=f"Give {files[0]} alone."
        )
    if files:
        return layout.diff(Layout.load(Path(files[0])))
    graph = load_recipe(recipe, [*overrides, *others], KINDS)
    return layout.diff(laid_out(graph, job_to_lay_out(graph, job)))


UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_bytes(text: str) -> int:
    """16GiB, 80GB, 500MiB or a number of bytes. Raises ShunterError for anything else."""
    number = text.strip().rstrip("KMGiBkmgIb")
    unit = text.strip()[len(number) :].upper()
    try:
        size = int(float(number) * UNITS[unit])
        if size <= 0:
            raise ValueError
    except (ValueError, KeyError, OverflowError):
        raise ShunterError(f"{text!r} is no amount of memory", mend="Write it as 16GiB or 500MB.") from None
    return size
