"""What `shunter plan` is asked: a model by recipe, config.json or name, and a cluster.

Imports without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.jobs.questions import Trained, question, trained
from shunter.models.families import from_config
from shunter.models.spec import DecoderSpec
from shunter.plan.choices import Question
from shunter.plan.presets import preset
from shunter.plan.profile import Profile
from shunter.recipe import disk


@dataclass(frozen=True)
class Asked:
    """A question with its cluster. notes: what was guessed."""

    question: Question
    cluster: Cluster
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """batch, row, trained: as a recipe has them; none where only the model is told."""

    spec: DecoderSpec
    batch: int | None = None
    row: int | None = None
    trained: Trained | None = None


def model(name: str, job: str | None = None) -> Model:
    """A recipe's file and the job of it, a config.json or its folder, or a published model.

    Raises ShunterError.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _of_recipe(path, job)
    if job is not None:
        raise ShunterError(f"{name} is no recipe, so it has no job {job}", mend="Leave --job out.")
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
    from shunter.jobs.layouts import job_to_lay_out
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe

    graph = load_recipe(path, [], KINDS)
    found = trained(graph, job_to_lay_out(graph, job))
    return Model(found.spec, found.batch, found.row, found)


def _told(model_name: str, option: str, given: int | None, known: int | None) -> int:
    """What was given, or else the recipe tells. Raises ShunterError where neither does, and below 1."""
    value = known if given is None else given
    if value is None:
        raise ShunterError(f"{model_name} does not tell {option}", mend=f"Give {option}.")
    if value < 1:
        raise ShunterError(f"{option} is {value}", mend="It must be at least 1.")
    return value


def ask(
    model_name: str,
    cluster: str,
    batch: int | None,
    sequence: int | None,
    *,
    practice_name: str | None = None,
    calibration: Path | None = None,
    profile: Path | None = None,
    job: str | None = None,
    extrapolate: bool = False,
) -> Asked:
    """The question. practice_name: by default what a recipe's job does, else `shunter`. extrapolate: see
    `plan.reach`; a profile has bounds of its own.

    Raises ShunterError for what is not there, and where batch or sequence are not told.
    """
    found = model(model_name, job)
    where = files.find(cluster)
    rows = _told(model_name, "--global-batch", batch, found.batch)
    row = _told(model_name, "--seq", sequence, found.row)
    notes: list[str] = []
    if found.trained is not None:
        notes += found.trained.notes if practice_name else found.trained.said(where)
        practice_name = practice_name or found.trained.practice(where)
    if row > found.spec.max_positions:
        notes.append(
            f"rows of {row} tokens are longer than the model's context of {found.spec.max_positions}"
        )
    if practice_name is None:
        practice_name = "shunter"
        if all(device.spec.type == "cpu" for device in where.devices):
            practice_name = "shunter-fp32"
            notes.append("on a CPU, counted as fp32")
    free = extrapolate or profile is not None
    asked = question(found.spec, where, rows, row, practice_name, calibration, extrapolate=free)
    if profile is not None:
        asked = asked.measured(Profile.load(profile), str(profile))
        notes.append(f"parts and messages as measured: {profile}")
    return Asked(asked, where, tuple(notes))


def budget(asked: Question, size: int) -> float:
    """Bytes that each device may hold. Raises ShunterError for more than any has."""
    most = asked.fabric.room(None)
    if size > most:
        raise ShunterError(
            f"--budget-memory is {disk.human(size)}, and a device of {asked.fabric.name} has "
            f"{disk.human(most)}",
            mend="Give less, or leave it out: all that is there may be used.",
        )
    return float(size)


@dataclass(frozen=True)
class Profiled:
    """What `shunter probe --model` measures. rows: of a step, and so of the largest micro-batch."""

    spec: DecoderSpec
    row: int
    rows: int
    precision: str
    optimizer: str


def to_profile(model_name: str, batch: int | None, sequence: int | None, job: str | None = None) -> Profiled:
    """As a recipe's job has it, or a published model in the precision that this machine multiplies fast.

    Raises ShunterError for what is not there, and where batch or row are not told.
    """
    import torch

    from shunter.train.device import choose_precision

    found = model(model_name, job)
    rows = _told(model_name, "--global-batch", batch, found.batch)
    row = _told(model_name, "--seq", sequence, found.row)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = None if found.trained is None else found.trained.train
    precision = choose_precision("auto" if train is None else train.precision, device)
    return Profiled(found.spec, row, rows, precision, "adamw" if train is None else train.optimizer)


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
