"""What `shunter plan` is asked: a model by recipe, config.json or name, and a cluster.

Imports without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.models.families import from_config
from shunter.models.spec import DecoderSpec
from shunter.plan.calibrate import coefficients_of
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import practice
from shunter.plan.presets import preset
from shunter.plan.sources import rests_on
from shunter.recipe import disk


@dataclass(frozen=True)
class Asked:
    """A question with its cluster. notes: what was guessed."""

    question: Question
    cluster: Cluster
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """batch, row: as a recipe has them; none where only the model is told."""

    spec: DecoderSpec
    batch: int | None = None
    row: int | None = None
    notes: tuple[str, ...] = ()


def model(name: str, job: str | None = None) -> Model:
    """A recipe's file and the job of it, a config.json or its folder, or a published model.

    Raises ShunterError.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _of_recipe(path, job)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        if not path.is_file():
            raise ShunterError("file not found", where=str(path), mend="Check the path.")
        told = disk.read_json(path)
        if not isinstance(told, dict):
            raise ShunterError("the model configuration is not a JSON object", where=str(path))
        return Model(from_config(told, str(path)))
    return Model(preset(name))


def _of_recipe(path: Path, job: str | None) -> Model:
    from shunter.jobs.layouts import job_to_lay_out, known
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe

    graph = load_recipe(path, [], KINDS)
    node = job_to_lay_out(graph, job)
    found = known(graph, node)
    if found is None:
        raise ShunterError(
            f"the model of {node.name} is not told by the recipe",
            where=node.where,
            mend="Name a recipe with a model:, or one that begins from an import.",
        )
    return Model(found.spec, node.config.train.batch_rows, found.row_length, found.guesses)  # type: ignore[attr-defined]


def ask(
    model_name: str,
    cluster: str,
    batch: int | None,
    sequence: int | None,
    *,
    practice_name: str = "shunter",
    calibration: Path | None = None,
    job: str | None = None,
) -> Asked:
    """The question. Raises ShunterError for what is not there, and where batch or sequence are not told."""
    found = model(model_name, job)
    where = files.find(cluster)
    rows = found.batch if batch is None else batch
    row = found.row if sequence is None else sequence
    for name, value in (("--global-batch", rows), ("--seq", row)):
        if value is None:
            raise ShunterError(f"{model_name} does not tell {name}", mend=f"Give {name}.")
        if value < 1:
            raise ShunterError(f"{name} is {value}", mend="It must be at least 1.")
    assert rows is not None
    assert row is not None
    notes = list(found.notes)
    if row > found.spec.max_positions:
        notes.append(
            f"rows of {row} tokens are longer than the model's context of {found.spec.max_positions}"
        )
    fabric = Fabric.of(where)
    if practice_name == "shunter" and fabric.device.type == "cpu":
        practice_name = "shunter-fp32"
        notes.append("on a CPU, counted as fp32")
    question = Question(
        found.spec, fabric, rows, row, practice(practice_name), coefficients_of(where, calibration)
    )
    return Asked(question, where, (*notes, *rests_on(question)))


TIMES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parse_tokens(text: str) -> float:
    """15T, 300B or a number of tokens. Raises ShunterError for anything else."""
    number = text.strip().upper()
    unit = number[-1:] if number[-1:] in TIMES else ""
    try:
        found = float(number.removesuffix(unit)) * TIMES[unit]
        if not 0 < found < 1e18:
            raise ValueError
    except ValueError:
        raise ShunterError(f"{text!r} is no number of tokens", mend="Write it as 15T or 300B.") from None
    return found
