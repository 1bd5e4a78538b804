"""What a job is to the graph: a kind, a typed configuration in two halves, inputs, checks, work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from pydantic import Field

from shunter.config.base import Config
from shunter.recipe.artefact import Artefact
from shunter.record.events import EventLog

if TYPE_CHECKING:
    from shunter.recipe.graph import Graph, Node


@dataclass(frozen=True)
class Input:
    """Annotation of a configuration field that names an upstream job.

    `corpus: Annotated[str, Input("corpus")]` takes one artefact of type "corpus";
    `models: Annotated[list[str], Input("model")]` takes several, and a sweep upstream is gathered
    into it instead of multiplying this job. Several types may be allowed: Input("model", "tokens").
    """

    types: tuple[str, ...]

    def __init__(self, *types: str) -> None:
        object.__setattr__(self, "types", types)


class How(Config):
    """The half of a job's configuration that must not change its result. Recorded per attempt."""


class JobConfig(Config):
    """Base of a job's configuration. Everything outside `how` is the `what` half: the identity."""

    kind: str = Field(description="The verb: which job this is.")
    seed: int = Field(0, ge=0, description="Seed of every random stream of this job.")
    how: How = Field(default_factory=How, description="Choices that must not change the result.")


C = TypeVar("C", bound=JobConfig)


class Control(Protocol):
    """Requests from outside (signals, `shunter watch`), polled by long work between two steps."""

    def stop_requested(self) -> bool:
        """True once the run shall save and stop. Work then saves its state and raises `Stopped`."""

    def take_save_request(self) -> bool:
        """True once for each `save now` request."""


class Stopped(Exception):
    """Raised by a job that has saved its state because a stop was requested. Not an error."""


@dataclass
class JobContext(Generic[C]):
    """All that a job's work may touch."""

    name: str  # the job's name in the graph; a sweep's variant is `base[train.lr=0.001]`
    config: C
    inputs: Mapping[str, Artefact | list[Artefact]]  # by configuration field, as annotated by Input
    out: Path  # empty staging folder; all that it holds is published, under its content digest
    log: Path  # published beside `out`'s files as `log/`, outside the content digest: events, timings
    work: Path  # private, survives a kill, handed to the next attempt, removed after publication
    base: Path  # the recipe's folder, against which relative paths in the configuration resolve
    events: EventLog  # `log/events.jsonl`
    control: Control
    world: object | None = None  # this process's place among those of the job; None: it is alone
    crew: object | None = None  # processes that were started together and wait for jobs on several

    def one(self, field: str) -> Artefact:
        """The single artefact of an input field."""
        artefact = self.inputs[field]
        assert isinstance(artefact, Artefact), f"{field} is a list input"
        return artefact

    def many(self, field: str) -> list[Artefact]:
        """The artefacts of a list input field, in the recipe's order."""
        artefacts = self.inputs[field]
        assert isinstance(artefacts, list), f"{field} is a single input"
        return artefacts


class Job(Protocol[C]):
    """One verb. Its module imports without torch; `run` imports what it needs."""

    kind: ClassVar[str]
    produces: ClassVar[str]  # the artefact type
    version: ClassVar[int]  # raised when the same `what` would give another result or format
    Config: ClassVar[type[JobConfig]]

    def check(self, config: C, base: Path) -> Sequence[str]:
        """Everything that can be checked before a run, fast and without torch.

        Raises ShunterError for what would fail (missing files, missing extras); returns warnings.
        """

    def run(self, context: JobContext[C]) -> dict[str, Any]:
        """Do the work, write `context.out`, return headline metrics for the manifest."""


@runtime_checkable
class ReadsFiles(Protocol):
    """A job that reads files outside the store. Their content is part of its identity: a changed file
    makes another artefact, and a file that changes while the job works is an error."""

    def reads(self, config: Any, base: Path) -> Sequence[Path]:
        """The files, each once, in a fixed order. Raises ShunterError when one is missing."""


@runtime_checkable
class EstimatesDisk(Protocol):
    """A job that can say beforehand how much it will write."""

    def disk_bytes(self, config: Any, base: Path) -> int:
        """Bytes that its work and its artefact need at their peak; a cautious estimate."""


@dataclass(frozen=True)
class Pace:
    """steps: of a whole run. samples: of a step. every: steps between two lines of its log."""

    steps: int
    samples: int
    every: int


@runtime_checkable
class JudgesBeginnings(Protocol):
    """A job of which it can be told by the beginnings of several runs which will end well."""

    compared: ClassVar[frozenset[str]]  # keys of the configuration below which such runs may differ

    def pace(self, config: Any) -> Pace:
        """How far a run goes, and in which steps."""

    def judge(
        self, logs: Mapping[str, tuple[Path, int]], samples: int, share: float, tolerance: float
    ) -> tuple[Mapping[str, float], set[str]]:
        """Scores of runs, higher is better, by what their logs say of the first so many samples; and those to
        stop, at most this share. logs: events.jsonl and samples of a step, by run."""


@runtime_checkable
class ChecksGraph(Protocol):
    """A job that can refuse more when it knows the jobs that it reads from."""

    def check_graph(self, node: Node, graph: Graph) -> Sequence[str]:
        """As `Job.check`; called after it."""
