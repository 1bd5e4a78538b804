"""Tuning by trials: Bayesian search over short runs or a simulator, in which failures are data (arXiv
2312.12705).

Each trial is a line of a file. The search is a function of space, seed and what was found, so going on
after a kill is asking again and taking what the file has."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from shunter.config.errors import MissingExtra, ShunterError

Value = int | float | str | bool
Point = dict[str, Value]
Key = tuple[Value, ...]
Method = Literal["bayes", "random"]

REPEATS = 40  # points in a row that are known already or cannot be, after which one is drawn at random
VERSION = 2  # of the log; 1 did not tell what was searched
FIRST = 10  # trials before the model of the space says where to look


class Failed(Exception):
    """A trial that did not run, such as one out of memory. Its text is kept; the search learns from it.

    by: how far it was from running, where that is known, such as 1.4 for 40 % too much memory; 1 says
    nothing."""

    def __init__(self, what: str, by: float = 1.0) -> None:
        super().__init__(what)
        self.by = by


@dataclass(frozen=True)
class Space:
    """knobs: values of each by name, in order. refused: why a point cannot be, or an empty text; such
    points are never tried."""

    knobs: Mapping[str, Sequence[Value]]
    refused: Callable[[Point], str] = lambda point: ""

    def points(self) -> Iterator[Point]:
        """Those that can be, in order."""
        for values in product(*self.knobs.values()):
            point = dict(zip(self.knobs, values, strict=True))
            if not self.refused(point):
                yield point

    @staticmethod
    def key(point: Point) -> Key:
        """The point as something to look up."""
        return tuple(point.values())

    def row(self, point: Point) -> list[int]:
        """The place of each value among its knob's."""
        return [list(values).index(point[name]) for name, values in self.knobs.items()]


@dataclass(frozen=True)
class Trial:
    """value: larger is better; none where it failed, and `failed` says why."""

    number: int
    point: Point
    value: float | None
    failed: str = ""
    by: float = 1.0
    code: str = ""  # of the program that ran it, where that is told

    @property
    def worth(self) -> float:
        """For the model: the value, or below 0 by how far a failure was from running."""
        return -math.log(max(self.by, 1.0)) if self.value is None else self.value

    def to_json(self) -> dict[str, Any]:
        told = {"number": self.number, "point": self.point, "value": self.value}
        told |= {"code": self.code} if self.code else {}
        return told if self.value is not None else {**told, "failed": self.failed, "by": self.by}


@dataclass
class Trials:
    """All of a search, in order."""

    done: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        """The first with the largest value."""
        sound = [trial for trial in self.done if trial.value is not None]
        return max(sound, key=lambda trial: trial.value or 0.0, default=None)

    @property
    def failures(self) -> int:
        return sum(trial.value is None for trial in self.done)


def search(
    space: Space,
    run: Callable[[Point], float],
    trials: int,
    *,
    seed: int = 0,
    method: Method = "bayes",
    start: Sequence[Point] | Callable[[], Sequence[Point]] = (),
    log: Path | None = None,
    told: Callable[[Trial], None] = lambda trial: None,
    of: Mapping[str, Any] | None = None,
    code: str = "",
) -> Trials:
    """Try so many points, each once: those of `start` first, such as the planner's best. What a function
    gives as them is kept in the log, so that going on begins with the same.

    of: what is searched (which job, metric, machine), by name: a log of anything else is refused. code: of
    the program, kept with each trial.
    run: gives a point's value, or raises `Failed`; a failure counts as a trial and as a value of 0 for the
    model (Optuna's TPE over all knobs together). log: one line a trial; those that stand there are not run
    again. Raises MissingExtra without Optuna, ShunterError where no point can be, and for a log of another
    search."""
    sound = list(space.points())
    if not sound:
        first = {name: values[0] for name, values in space.knobs.items()}
        raise ShunterError(f"no combination of the knobs can be; of the first: {space.refused(first)}")
    head = _head(space, seed, method, of or {})
    kept, known = _read(log, head) if log else ([], None)
    asked = known if known is not None else start() if callable(start) else start
    begin: list[Point] = [dict(point) for point in asked]
    for point in begin:
        if point not in sound:
            why = space.refused(point) if point.keys() == space.knobs.keys() else "it has other knobs"
            raise ShunterError(f"the first point {point} cannot be: {why or 'a value is not in the space'}")
    if log and not log.exists():
        _begin(log, head, begin if callable(start) else None)
    ask, tell = _random(seed) if method == "random" else _bayes(space, seed)
    found = Trials()
    begin = [{name: point[name] for name in space.knobs} for point in begin]
    left = {space.key(point): point for point in sound}
    for number in range(min(trials, len(sound))):
        point = begin.pop(0) if begin else ask(left)
        del left[space.key(point)]
        if number < len(kept):
            trial = kept[number]
            if trial.point != point:
                raise ShunterError(
                    f"trial {number} of the log is {trial.point}, and this search asks for {point}",
                    where=str(log),
                    mend="Use the same first points as before, or another file.",
                )
        else:
            trial = replace(_try(number, point, run), code=code)
            if log:
                _append(log, trial)
        tell(point, trial.worth)
        found.done.append(trial)
        told(trial)
    return found


def _try(number: int, point: Point, run: Callable[[Point], float]) -> Trial:
    try:
        return Trial(number, point, float(run(point)))
    except Failed as failure:
        return Trial(number, point, None, str(failure) or "failed", failure.by)


Ask = Callable[[Mapping[Key, Point]], Point]  # of those that are left
Tell = Callable[[Point, float], None]


def _random(seed: int) -> tuple[Ask, Tell]:
    draw = random.Random(seed)

    def ask(left: Mapping[Key, Point]) -> Point:
        return draw.choice(list(left.values()))

    return ask, lambda point, value: None


def _bayes(space: Space, seed: int) -> tuple[Ask, Tell]:
    try:
        import optuna
    except ImportError:
        raise MissingExtra("optuna", extra="tune", purpose="Bayesian search") from None
    import warnings

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=FIRST)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    # Places of values, so that neighbours in a knob's list are neighbours to the model.
    spread = {
        name: optuna.distributions.IntDistribution(0, len(values) - 1) for name, values in space.knobs.items()
    }
    draw = random.Random(seed)

    def ask(left: Mapping[Key, Point]) -> Point:
        for _ in range(REPEATS):
            asked = study.ask(spread)
            point = {name: values[asked.params[name]] for name, values in space.knobs.items()}
            if space.key(point) in left:
                return point
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        return draw.choice(list(left.values()))

    def tell(point: Point, value: float) -> None:
        params = dict(zip(space.knobs, space.row(point), strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spread, value=value))

    return ask, tell


def _head(space: Space, seed: int, method: str, of: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "seed": seed,
        "method": method,
        "knobs": {k: list(v) for k, v in space.knobs.items()},
        "of": dict(of),
    }


def _begin(path: Path, head: Mapping[str, Any], start: Sequence[Point] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {**head, **({} if start is None else {"start": list(start)})}
    path.write_text(json.dumps(told) + "\n", encoding="utf-8")


def _read(path: Path, head: Mapping[str, Any]) -> tuple[list[Trial], list[Point] | None]:
    """Trials of a log that this search began, and the first points that are kept in it; a last line that a
    kill cut short is dropped. Raises ShunterError for another search's log, naming what differs, and for a
    file that is none."""
    if not path.exists():
        return [], None
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    if not text.endswith("\n"):
        lines = [*lines[:-1], ""]
        path.write_text("\n".join(lines), encoding="utf-8")
    none = ShunterError("this is no log of trials", where=str(path), mend="Name another file.")
    try:
        found = [json.loads(line) for line in lines if line]
    except ValueError:
        raise none from None
    if not found or not isinstance(found[0], dict) or found[0].get("version") not in (1, VERSION):
        raise none
    theirs = {"of": {}, **found[0]}
    here = {**{key: value for key, value in head.items() if key != "of"}, **head["of"]}
    there = {**theirs, **theirs["of"]} if isinstance(theirs["of"], dict) else theirs
    differ = [key for key in here if key != "version" and there.get(key) != here[key]]
    differ += [key for key in theirs["of"] if key not in here]
    if differ:
        raise ShunterError(
            f"this log is of another search: other {', '.join(differ)}",
            where=str(path),
            mend="Name another file or folder, or remove this one.",
        )
    start = theirs.get("start")
    try:
        trials = [_trial(each, number) for number, each in enumerate(found[1:])]
    except (TypeError, ValueError, KeyError, AttributeError):
        raise none from None
    return trials, start if isinstance(start, list) else None


def _trial(told: Mapping[str, Any], number: int) -> Trial:
    """A line of the log. Raises ValueError and the like for one that is none."""
    value = told["value"]
    if told["number"] != number or not isinstance(told["point"], dict) or isinstance(value, bool):
        raise ValueError(told)
    if value is not None and not isinstance(value, int | float):
        raise ValueError(told)
    return Trial(**told)


def _append(path: Path, trial: Trial) -> None:
    """On disk before the next one begins."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(trial.to_json()) + "\n")
        file.flush()
        os.fsync(file.fileno())
