"""Configuration of training, in the two halves of DESIGN: what is learnt, and how it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.layout.grid import DENSE, Grid
from shunter.recipe.job import How
from shunter.schedule.action import BACKWARD, INPUT
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.check import check
from shunter.schedule.lower import has_messages, lower
from shunter.schedule.order import Order
from shunter.schedule.program import Program
from shunter.schedule.recompute import recomputed
from shunter.schedule.text import read_file
from shunter.schedule.vocabulary import parallel_vocabulary

# other-seed restores all, and draws what comes next from another seed (noise, and the order of the rows
# that are left): the band of chance to compare with.
Restore = Literal["full", "no-optimizer", "no-schedule", "no-data", "no-rng", "weights-only", "other-seed"]


class Restart(Config):
    """A planned interruption: save, forget everything, restore, go on (arXiv 2412.13335).

    For studying what a lossy restore does to a run. A run that merely was interrupted needs none of
    this: the same command restores all.
    """

    at: int = Field(ge=1, description="Steps done when the run is interrupted.")
    restore: Restore = Field("full", description="What is restored; the rest starts anew.")
    rewarm: int = Field(0, ge=0, description="Steps over which the rate climbs back after the restart.")
    micro_batch: int | None = Field(
        None, ge=1, description="Rows in one pass from then on: the rounding that other hardware brings."
    )


class DropoutConfig(Config):
    """What is zeroed at random while a model learns. The same is dropped on every layout."""

    residual: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of what embedding, attention and feed-forward add to the residual stream.",
    )
    inner: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of what enters the second product of each attention and feed-forward; not with "
        "experts.",
    )


class TrainConfig(Config):
    """One optimisation: the same configuration gives the same weights, however it is computed."""

    steps: int = Field(ge=1, description="Optimizer steps; fixed at the first launch, as the schedule is.")
    batch_rows: int = Field(16, ge=1, description="Rows in one optimizer step, over all micro-batches.")
    lr: float = Field(3e-3, gt=0, description="Peak learning rate.")
    optimizer: Literal["adamw", "muon"] = Field(
        "muon", description="muon: Muon for the weight matrices of the layers, AdamW for all others."
    )
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2, description="AdamW's decay rates.")
    eps: float = Field(1e-8, gt=0, description="AdamW's denominator offset.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum.")
    weight_decay: float = Field(0.1, ge=0, description="Decay of tensors with at least two dims.")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="Shape of the learning rate: cosine, warm-up/stable/decay, or constant."
    )
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    decay: float = Field(0.3, gt=0, le=1, description="Share of the steps in which wsd decays.")
    final: float = Field(0.1, ge=0, le=1, description="Last learning rate as a share of the peak.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 computes matrix products in bfloat16; auto does where that is fast."
    )
    z_loss: float = Field(0.0, ge=0, description="Weight of the squared log of the softmax normaliser.")
    max_skipped: int = Field(10, ge=0, description="Steps with a non-finite loss or gradient to endure.")
    input_noise: float = Field(
        0.0, ge=0, lt=1, description="Share of input tokens replaced by random ones, against overfitting."
    )
    dropout: DropoutConfig | None = Field(
        None,
        # Jobs without it are those that they were before there was any.
        exclude_if=lambda value: value is None,
        description="Drop at random while learning, against overfitting: {residual: 0.1}.",
    )
    validate_every: int = Field(0, ge=0, description="Steps between validations; 0: at the end only.")
    validate_rows: int = Field(128, ge=1, description="Held-out rows per validation.")
    restart: Restart | None = Field(None, description="A planned interruption, to study lossy restores.")

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than steps {self.steps}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        if self.restart and self.restart.at >= self.steps:
            raise ValueError(f"restart.at {self.restart.at} must be below steps {self.steps}")
        return self


# What a recipe may say beside a plan's file.
BESIDE_A_PLAN = frozenset(
    {"plan", "replan", "replans", "timeout", "timeline", "attention", "sequence", "reshard", "pad_experts"}
)
AUTO = "auto"  # in place of a plan's file: plan for the machine that the recipe runs on


class LayerDegrees(Config):
    """Layers with degrees of their own, over the same ranks of their stage as the rest."""

    of: list[int] = Field(min_length=1, description="Numbers of the layers.")
    dp: int = Field(1, ge=1, description="Copies of these layers that see other rows.")
    fsdp: int = Field(1, ge=1, description="As dp, with weights, gradients and optimizer cut between them.")
    cp: int = Field(1, ge=1, description="Parts of each row.")
    tp: int = Field(1, ge=1, description="Parts of each matrix.")
    ep: int = Field(1, ge=1, description="Parts of the set of experts.")
    etp: int = Field(1, ge=1, description="Parts of each expert.")

    def grid(self, pp: int) -> Grid:
        """With the stages of the layout. Raises ShunterError for degrees that do not fit each other."""
        return Grid(pp, self.dp, self.fsdp, self.cp, self.tp, self.ep, self.etp)


class EndDegrees(Config):
    """Embedding, last norm and head with degrees of their own, over the same ranks of their stage."""

    dp: int = Field(1, ge=1, description="Copies that see other rows.")
    fsdp: int = Field(1, ge=1, description="As dp, with weights, gradients and optimizer cut between them.")
    cp: int = Field(1, ge=1, description="Parts of each row.")
    tp: int = Field(1, ge=1, description="Parts of the vocabulary.")

    def grid(self, pp: int) -> Grid:
        """With the stages of the layout."""
        return Grid(pp, self.dp, self.fsdp, self.cp, self.tp)


class Parallel(Config):
    """The model laid out over processes: stages, copies, and parts of weights and rows.

    A recipe may write `auto` or a plan's file in its place.
    """

    pp: int = Field(1, ge=1, description="Stages: ranks that have different layers.")
    dp: int = Field(1, ge=1, description="Copies of the model that see other rows.")
    fsdp: int = Field(1, ge=1, description="As dp, with weights, gradients and optimizer cut between them.")
    cp: int = Field(1, ge=1, description="Parts of each row, for long rows.")
    tp: int = Field(1, ge=1, description="Parts of each matrix, for wide layers and fast links.")
    ep: int = Field(1, ge=1, description="Parts of the set of experts, over the ranks of a stage.")
    etp: int = Field(1, ge=1, description="Parts of each expert, likewise.")
    layers: list[LayerDegrees] | None = Field(
        None,
        description="Layers with degrees of their own, over the ranks of their stage: hidden states change "
        "ranks where degrees change. The degrees above are those of all others.",
    )
    ends: EndDegrees | None = Field(
        None,
        description="Embedding, last norm and head with degrees of their own, likewise. None: those above.",
    )
    pad_experts: bool = Field(
        False,
        description="Fill each expert up to its capacity with zeros: all sizes are known beforehand, and "
        "nothing waits for the device. Needs experts.capacity.",
    )
    sequence: bool = Field(True, description="Tensor ranks have a part of the tokens each between products.")
    attention: Literal["ring", "gather", "ulysses"] = Field(
        "ring", description="How context ranks see the rest of a row: keys and values that travel, or are "
        "gathered, or heads exchanged for tokens."
    )  # fmt: skip
    reshard: bool = Field(
        True, description="fsdp: free gathered weights between forward and backward, and gather them again."
    )
    zero: Literal[0, 1] = Field(
        0,
        description="1: ranks with the same weights share the optimizer's state (ZeRO-1): each updates "
        "a part, and the parts are gathered.",
    )
    gather: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="fsdp: how layers' matrices travel; bf16 needs train.precision: bf16, and no stages.",
    )
    schedule: str = Field("1f1b", description="Order of the work; `shunter schedules` lists them.")
    program: str | None = Field(
        None, description="Instead of a schedule: a program's file, written by `shunter simulate --csv`."
    )
    microbatches: int | None = Field(
        None,
        ge=1,
        description="Parts of a rank's rows; default 2 x pp, or without stages as how.micro_batch.",
    )
    chunks: int | None = Field(None, ge=1, description="Stages on each rank, where that can be chosen.")
    group: int | None = Field(None, ge=1, description="Micro-batches that pass together, likewise.")
    cut: list[int] | Literal["measured"] | None = Field(
        None,
        description="First layer of each stage but the first; measured: even in time, as rank 0 measures it "
        "before the first step; default: even in operations, head included.",
    )
    vocabulary: Literal[1, 2] | None = Field(
        None,
        description="Split embedding and head over all ranks, by algorithm 1 or 2 of Vocabulary Parallelism.",
    )
    recompute: bool | Literal["full", "selective"] | list[int] = Field(
        False,
        description="What is computed again for backwards: true: all between stages; full: each layer by "
        "itself; selective: likewise, but for products and attention; or the numbers of some layers.",
    )
    offload: bool | list[int] = Field(
        False,
        description="Layers whose inside waits in the host's memory for their backward: true: all; or the "
        "numbers of some.",
    )
    ranks: list[int] | None = Field(
        None,
        description="Number of the process, and so of the device, that has each rank; default: its own. "
        "A plan says it where devices or links differ.",
    )
    plan: str | None = Field(
        None,
        description="Instead of degrees and schedule: a file of `shunter plan -o`, for this model; or auto, "
        "a plan for the machine that runs it.",
    )
    replan: float | None = Field(
        None,
        gt=1,
        description="With a plan: how many times longer, or shorter, than predicted steps may take before "
        "the run plans anew, and goes on from a checkpoint under what it finds.",
    )
    replans: int = Field(2, ge=1, description="How many times it may do so.")
    at_least: dict[Literal["F", "B", "I", "W", "R"], list[float]] | None = Field(
        None,
        description="Seconds that an action of each stage takes at least, by its letter: what it lacks is "
        "slept. For schedules on a machine with fewer cores than ranks.",
    )
    timeout: float = Field(600.0, gt=0, description="Seconds after which a rank that is silent is given up.")
    timeline: int | None = Field(
        None, ge=0, description="Step whose timeline is measured, and whose collectives are counted."
    )

    @model_validator(mode="before")
    @classmethod
    def _plan_alone(cls, data: Any) -> Any:
        return {"plan": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _replanned(self) -> Parallel:
        if self.replan is not None and self.plan is None:
            raise ValueError("replan holds a run to a plan, and there is none: give plan, a file or auto")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Parallel:
        if self.plan is not None:
            return self  # `located` looks at both, once the plan's degrees are known
        if self.ranks is not None and sorted(self.ranks) != list(range(self.grid.size)):
            raise ValueError(
                f"ranks must name each of the {self.grid.size} processes once (got {self.ranks})"
            )
        return self

    @model_validator(mode="after")
    def _same_ranks(self) -> Parallel:
        if self.plan is not None:
            return self
        layers = self.layers or []
        numbers = [number for each in layers for number in each.of]
        if twice := [number for number in numbers if numbers.count(number) > 1]:
            raise ValueError(f"layers names layer {twice[0]} twice")
        ranks = self.dp * self.fsdp * self.cp * self.tp
        named: list[tuple[str, LayerDegrees | EndDegrees]] = [(f"layers {each.of}", each) for each in layers]
        named += [("ends", self.ends)] if self.ends is not None else []
        for name, each in named:
            if each.dp * each.fsdp * each.cp * each.tp != ranks:
                raise ValueError(
                    f"{name} are laid out over dp {each.dp} x fsdp {each.fsdp} x cp {each.cp} x tp "
                    f"{each.tp} ranks, but a stage has {ranks}"
                )
        return self

    @property
    def grid(self) -> Grid:
        """Raises ShunterError for degrees that do not fit each other."""
        return Grid(self.pp, self.dp, self.fsdp, self.cp, self.tp, self.ep, self.etp)

    def own_grids(self) -> dict[int, Grid]:
        """Of layers whose degrees differ from those of the layout, by number."""
        found = {number: each.grid(self.pp) for each in self.layers or () for number in each.of}
        return {number: found[number] for number in sorted(found) if found[number] != self.grid}

    @property
    def ends_grid(self) -> Grid | None:
        """Of embedding, last norm and head, where it is not that of the layout."""
        if self.ends is None:
            return None
        own, found = self.grid, self.ends.grid(self.pp)
        same = all(own.degree(axis) == found.degree(axis) for axis in DENSE)
        return None if same else found

    @property
    def sharded(self) -> bool:
        """Whether any weights are cut between data ranks."""
        return any(grid.fsdp > 1 for grid in (self.grid, *self.others))

    @property
    def others(self) -> tuple[Grid, ...]:
        """The grids that some layers, or the ends, have instead, each once."""
        ends = self.ends_grid
        return tuple(dict.fromkeys([*self.own_grids().values(), *([ends] if ends else [])]))

    @property
    def data(self) -> int:
        """Ranks among which a step's rows are shared out."""
        return self.dp * self.fsdp

    @property
    def parts(self) -> int:
        """Micro-batches of a step on each rank."""
        return self.microbatches or 2 * self.pp

    def settled(self, batch_rows: int, micro_batch: int) -> Parallel:
        """With the number of micro-batches decided. Raises ShunterError when there are too few rows."""
        decided = self
        if self.microbatches is None and self.pp == 1 and self.chunks is None:
            rows = -(-batch_rows // self.data)
            decided = self.model_copy(update={"microbatches": -(-rows // micro_batch)})
        if batch_rows < decided.data * decided.parts:
            shared = f" on each of {self.data} data ranks" if self.data > 1 else ""
            raise ShunterError(
                f"{batch_rows} rows a step cannot be cut into {decided.parts} micro-batches{shared}",
                where="how.parallel",
                mend=f"Set microbatches to at most {batch_rows // self.data}."
                if batch_rows >= self.data
                else f"Set train.batch_rows to at least {self.data}.",
            )
        return decided

    def again(self, layers: int) -> list[int]:
        """Which of so many layers are computed again by themselves."""
        if isinstance(self.recompute, list):
            return self.recompute
        return list(range(layers)) if isinstance(self.recompute, str) else []

    def aside(self, layers: int) -> list[int]:
        """Which of so many layers are put aside."""
        if isinstance(self.offload, list):
            return self.offload
        return list(range(layers)) if self.offload else []

    def order(self, head: float = 0.5) -> Order:
        """What each rank does. Raises ShunterError for a schedule that does not exist or does not fit.

        head: time of each of the head's three products, where a rank's forward takes 1.
        """
        if self.program is not None:
            return self._checked(read_file(Path(self.program)).order)
        found = schedule(self.schedule)
        if found.name == "forward-only":
            raise ShunterError("forward-only trains nothing", mend="Choose 1f1b, or any other schedule.")
        order = self._checked(found.build(self.pp, self.parts, chunks=self.chunks, group=self.group))
        if self.vocabulary is not None:
            order = parallel_vocabulary(order, self.vocabulary, head=head)
        return recomputed(order) if self.recompute is True else order

    def lowered(self, order: Order, *, sharded: bool = False) -> Program:
        """The order's program with its messages: those of the file, where it has some.

        sharded: with gathering of weights and reduction of gradients.
        """
        if self.program is not None:
            program = read_file(Path(self.program)).program()
            return program if has_messages(program) else lower(program, shard=sharded, reduce=sharded)
        return lower(assemble(order), shard=sharded, reduce=sharded)

    def located(self, base: Path) -> Parallel:
        """With what a plan's file says, or with the program's file found from `base` and its micro-batches.

        Raises ShunterError for a program that cannot train, and for choices that either has made already.
        """
        if self.plan == AUTO:  # `shunter run` has put a file in its place before any job is made
            return self
        if self.plan is not None:
            return self._planned(base / self.plan)
        if self.program is None:
            return self
        path = base / self.program
        written = read_file(path)
        order, where = written.order, str(path)
        given = self.model_fields_set & {"schedule", "chunks", "group", "vocabulary", "recompute"}
        if isinstance(self.recompute, (str, list)):  # not of the program's actions
            given = given - {"recompute"}
        if set_too := sorted(name for name in given if getattr(self, name) not in (None, False)):
            raise ShunterError(
                f"both program and {set_too[0]} say what ranks do",
                where=where,
                mend="Leave one of the two out.",
            )
        if self.microbatches not in (None, order.microbatches):
            raise ShunterError(
                f"the program has {order.microbatches} micro-batches, not {self.microbatches}",
                where=where,
                mend="Leave microbatches out.",
            )
        if order.ranks != self.pp:
            raise ShunterError(
                f"the program is of {order.ranks} ranks, pp of {self.pp}",
                where=where,
                mend="Make them agree.",
            )
        if written.routes is not None:
            raise ShunterError(
                "a micro-batch of the program takes a route of its own, so its model would be another one",
                where=where,
                mend="Remove the lines that begin with route.",
            )
        check(written.program())
        if not any(action.op in (BACKWARD, INPUT) for action in order.actions[0]):
            raise ShunterError("the program trains nothing", where=where, mend="Give it backwards.")
        return self.model_copy(update={"program": str(path), "microbatches": order.microbatches})

    def _planned(self, path: Path) -> Parallel:
        """As a plan says; `plan` is then where it stands, so that the run can be held to it."""
        from shunter.plan.plan import Plan  # with numpy, which no command needs to start

        given = self.model_fields_set - BESIDE_A_PLAN
        made = Plan.load(path).parallel()
        if wrong := sorted(name for name in given if getattr(self, name) != made.get(name, None)):
            raise ShunterError(
                f"both plan and {wrong[0]} say how the model is laid out",
                where=str(path),
                mend="Leave one of the two out.",
            )
        # Whole configurations, not mappings: nothing is read again here.
        layers = [LayerDegrees.model_validate(each) for each in made.get("layers", ())] or None
        ends = EndDegrees.model_validate(made["ends"]) if "ends" in made else None
        return self.model_copy(update={**made, "layers": layers, "ends": ends, "plan": str(path)})

    def _checked(self, order: Order) -> Order:
        if isinstance(self.cut, list) and len(self.cut) != order.stages - 1:
            raise ShunterError(
                f"cut has {len(self.cut)} bounds, but {order.stages} stages have {order.stages - 1}",
                mend="Give the first layer of each stage but the first, or leave cut out.",
            )
        return order


class TrainHow(How):
    """Choices that do not change what is learnt (equivalent within rounding; tests show it)."""

    micro_batch: int = Field(16, ge=1, description="Rows in one forward and backward pass.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, description="CPU threads; 0: one a core.")
    compile: bool = Field(False, description="Compile the model; pays off in runs of many minutes.")
    compile_memory: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the activations that a compiled model keeps for its backward pass, of what it "
        "would keep by itself; the rest is computed again, cheap operations first.",
    )
    parallel: Parallel | None = Field(
        None, description="Lay the model out over several processes; none: one process."
    )
    deterministic: bool = Field(False, description="Refuse kernels whose result varies between runs.")
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints.")
    checkpoint_async: bool = Field(
        False,
        description="Copy the state aside in memory, and write it while training goes on; one at a time.",
    )
    keep: int = Field(2, ge=1, description="Checkpoints to keep.")
    log_every: int = Field(10, ge=1, description="Steps between lines of progress and metrics.")
    track: list[Literal["tensorboard", "wandb", "mlflow"]] | None = Field(
        None, description="Trackers fed beside the event log; default: tensorboard where it is installed."
    )
