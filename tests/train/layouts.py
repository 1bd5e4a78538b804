"""Layouts drawn at random, and a training step under each beside that of one process."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import lcm, prod
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.optim import _muon

from shunter.config.errors import ShunterError
from shunter.data.tokens import IGNORE, Batch
from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder
from shunter.models.sharding import check as check_grid
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import Groups, Peers
from shunter.train.config import DropoutConfig, Parallel, TrainConfig
from shunter.train.dropping import Dropping
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass, Passes
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.step import count, train_step
from shunter.train.world import World
from tests.parallel.pool import GROUPS

CPU = torch.device("cpu")
STEPS, CLIP = 3, 0.5
AXES = ("pp", "dp", "fsdp", "cp", "tp")
ALL = (*AXES, "ep", "etp")


@dataclass(frozen=True)
class Case:
    """spec, parallel: configurations as JSON values. rows: of a step. ragged: documents of any length.

    optimizer: adamw, or muon, whose own rounding to bfloat16 is taken out. padding: tokens of padding at the
    end of each row, which the ranks have and one process has not. dropout: residual and inner share.
    """

    spec: dict[str, Any]
    parallel: dict[str, Any]
    rows: int
    length: int
    z_loss: float
    ragged: bool
    seed: int
    optimizer: str = "adamw"
    padding: int = 0
    dropout: tuple[float, float] = (0.0, 0.0)

    @property
    def layout(self) -> Parallel:
        return Parallel(**self.parallel)

    @property
    def width(self) -> int:
        """Tokens of a row on the ranks."""
        return self.length + self.padding

    def features(self) -> set[str]:
        """What the case shows: for the table of coverage."""
        found = {axis for axis in ALL if self.parallel.get(axis, 1) > 1}
        found |= {
            name
            for name in ("recompute", "tied", "ragged", "zero", "vocabulary", "padding", "layers", "ends")
            if {**self.parallel, **self.spec, **vars(self)}.get(name)
        }
        found |= {self.optimizer}
        found |= {"dropout"} if any(self.dropout) else set()
        return found


def factorings(size: int, axes: tuple[str, ...] = AXES) -> list[dict[str, int]]:
    """All ways to give each axis a degree so that their product is `size`."""
    if not axes:
        return [{}] if size == 1 else []
    return [
        {axes[0]: degree, **rest}
        for degree in range(1, size + 1)
        if size % degree == 0
        for rest in factorings(size // degree, axes[1:])
    ]


def beside(recompute: Any) -> list[Any]:
    """What may be put aside while that is computed again."""
    if recompute is False:
        return [False, [0], True]
    return [False, [0]] if isinstance(recompute, list) and 0 not in recompute else [False]


def divisors(number: int) -> list[int]:
    return [degree for degree in range(1, number + 1) if number % degree == 0]


def published(spec: dict[str, Any]) -> bool:
    """Whether some published architecture has these parts together: others are refused."""
    try:
        DecoderSpec(**spec)
    except ValueError:
        return False
    return True


@st.composite
def cases(
    draw: st.DrawFn,
    worlds: tuple[int, ...] = (2, 3, 4),
    *,
    mixtures: bool = True,
    must: tuple[str, ...] = (),
) -> Case:
    """Any layout of any decoder that may be laid out so."""
    folded = {"ep", "etp"} & set(must)
    degrees = draw(
        st.sampled_from(
            [
                found
                for size in worlds
                for found in factorings(size)
                if all(found[axis] > 1 for axis in set(must) - folded)
                and (not folded or size // found["pp"] >= 2 ** len(folded))
            ]
        )
    )
    tp, cp, pp = degrees["tp"], degrees["cp"], degrees["pp"]
    kv = draw(st.sampled_from([heads for heads in (1, 2, 3, 4) if heads % tp == 0 or tp % heads == 0]))
    heads = draw(st.sampled_from([h for h in range(kv, 9, kv) if h % tp == 0]))
    attention = draw(st.sampled_from(["ring", "gather", *(["ulysses"] if (heads // tp) % cp == 0 else [])]))
    schedule = (
        draw(st.sampled_from(["gpipe", "1f1b", "zb1p", "zbv", "interleaved-1f1b"])) if pp > 1 else "1f1b"
    )
    stages = pp * (2 if schedule in ("zbv", "interleaved-1f1b") else 1)
    microbatches = pp * draw(st.integers(1, 2)) if schedule == "interleaved-1f1b" else draw(st.integers(1, 4))
    if schedule == "zbv":
        microbatches = max(microbatches, 2 * pp)
    inner = degrees["dp"] * degrees["fsdp"] * cp * tp
    experts, filled = None, False
    if mixtures and (draw(st.integers(0, 2)) < 2 or folded):
        ep, etp = draw(
            st.sampled_from(
                [
                    (a, b)
                    for a in divisors(inner)
                    for b in divisors(inner // a)
                    if (a > 1 or "ep" not in folded) and (b > 1 or "etp" not in folded)
                ]
            )
        )
        degrees = {**degrees, "ep": ep, "etp": etp}
        width = etp * draw(st.integers(2, 4))
        experts = {
            "num_experts": ep * draw(st.integers(1 if ep > 1 else 2, 3)),
            "per_token": draw(st.integers(1, 2)),
            "ffn_dim": width,
            "router": draw(st.sampled_from(["softmax", "sigmoid"])),
            "normalise": draw(st.booleans()),
            "dense_first": draw(st.integers(0, 1)),
            "z_loss": draw(st.sampled_from([0.0, 0.1])),
            "balance_loss": draw(st.sampled_from([0.0, 0.05])),
            "capacity": draw(st.sampled_from([None, 0.8, 1.5])),
            "drop": draw(st.sampled_from(["probs", "position"])),
        }
        filled = experts["capacity"] is not None and draw(st.booleans())
        if experts["router"] == "sigmoid":
            experts["shared_ffn_dim"] = width * draw(st.integers(-(-tp // width), 3))
            experts["bias_update"] = draw(st.sampled_from([0.0, 0.01]))
    sequence = experts is not None or draw(st.booleans())
    parts = (2 * cp if cp > 1 else 1) * (tp if sequence else 1)
    bias = draw(st.booleans()) and experts is None
    tied = draw(st.booleans()) and not (degrees["fsdp"] > 1 and schedule == "zbv")
    spec = {
        "dim": draw(st.sampled_from([8, 12, 20])),
        "num_layers": stages + draw(st.integers(0, 2)),
        "num_heads": heads,
        "num_kv_heads": kv,
        "head_dim": draw(st.sampled_from([2, 4, 6])),
        "ffn_dim": draw(st.integers(max(5, tp), 17)),
        "vocab_size": draw(st.integers(23, 41)),
        "max_positions": 64,
        "qkv_bias": bias,
        "qk_norm": not bias and (experts is not None or draw(st.booleans())),
        "tied": tied,
        "experts": experts,
    }
    assume(published(spec))
    recompute = draw(
        st.sampled_from([False, "full", "selective", [stages - 1], *([True] if schedule != "zbv" else [])])
    )
    parallel = {
        **degrees,
        "schedule": schedule,
        "microbatches": microbatches,
        "sequence": sequence,
        "attention": attention,
        "reshard": draw(st.booleans()),
        "recompute": recompute,
        "offload": draw(st.sampled_from(beside(recompute))),
        "zero": draw(st.integers(0, 1)),
        "pad_experts": filled,
    }
    if pp > 1 and tp == 1 and degrees["fsdp"] == 1:
        parallel["vocabulary"] = draw(st.sampled_from([None, None, 1, 2]))
    data = degrees["dp"] * degrees["fsdp"]
    return Case(
        spec=spec,
        parallel=parallel,
        rows=data * microbatches + draw(st.integers(0, 3)),
        length=parts * draw(st.integers(max(1, 6 // parts), max(1, 18 // parts))),
        z_loss=draw(st.sampled_from([0.0, 0.01])),
        ragged=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
        optimizer=draw(st.sampled_from(["adamw", "adamw", "muon"])),
        padding=parts * draw(st.sampled_from([0, 0, 1])),
        dropout=draw(
            st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.1, 0.2) if experts is None else (0.1, 0.0)])
        ),
    )


@st.composite
def apart(draw: st.DrawFn, worlds: tuple[int, ...] = (2, 4), *, ends: bool = False) -> Case:
    """Of those, with degrees of their own for some layers; ends: for embedding and head, and perhaps for
    layers."""
    case = draw(cases(worlds))
    grid, spec = case.layout.grid, DecoderSpec(**case.spec)
    assume(grid.size > grid.pp)
    legal = [
        {**found, "ep": ep, "etp": etp}
        for found in factorings(grid.size // grid.pp, AXES[1:])
        for ep in divisors(grid.size // grid.pp)
        for etp in divisors(grid.size // grid.pp // ep)
        if may_be(case, Grid(grid.pp, **found, ep=ep, etp=etp))
    ]
    least = 0 if ends else 1
    numbers = draw(st.lists(st.integers(0, spec.num_layers - 1), min_size=least, unique=True))
    begin = draw(st.integers(0, max(len(numbers) - 1, 0)))
    layers = [
        {"of": some, **draw(st.sampled_from(legal))} for some in (numbers[:begin], numbers[begin:]) if some
    ]
    parallel = {**case.parallel, "layers": layers, "vocabulary": None, "pad_experts": False}
    if ends:
        vee = case.parallel["schedule"] == "zbv" and spec.tied  # of which nothing can be sharded
        parallel["ends"] = draw(
            st.sampled_from(
                [
                    found
                    for found in factorings(grid.size // grid.pp, AXES[1:])
                    if not (vee and found["fsdp"] > 1)
                    and any(found[axis] != grid.degree(axis) for axis in AXES[1:])
                ]
            )
        )
    found = Parallel(**parallel)
    assume(found.others)
    parts = 1
    for each in (found.grid, *found.others):
        parts = lcm(parts, (2 * each.cp if each.cp > 1 else 1) * (each.tp if found.sequence else 1))
    length = parts * max(1, case.length // parts)
    return replace(case, parallel=parallel, length=length, padding=parts if case.padding else 0)


def may_be(case: Case, grid: Grid) -> bool:
    """Whether the model, and the rows' attention, can be laid out so."""
    spec, parallel = DecoderSpec(**case.spec), case.layout
    try:
        check_grid(spec, grid, parallel.sequence)
    except ShunterError:
        return False
    small = spec.experts is not None and 0 < spec.experts.shared_ffn_dim < grid.tp
    return not small and (parallel.attention != "ulysses" or (spec.num_heads // grid.tp) % grid.cp == 0)


def config(case: Case) -> TrainConfig:
    return TrainConfig.model_validate({"steps": STEPS, "optimizer": case.optimizer})


def model(case: Case) -> Decoder:
    """Float64, every tensor drawn: what an initialisation leaves at zero would hide mistakes."""
    decoder = Decoder(DecoderSpec(**case.spec)).double()
    draw = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return decoder


def batch(case: Case, step: int, width: int | None = None) -> Batch:
    """Rows with documents, padding at some ends, and targets that do not count; padded to `width`."""
    draw = np.random.default_rng([case.seed, step])
    shape = (case.rows, case.length)
    tokens = draw.integers(0, case.spec["vocab_size"], shape)
    targets = draw.integers(0, case.spec["vocab_size"], shape)
    segments = np.zeros(shape, dtype=np.int32)
    positions = np.tile(np.arange(case.length), (case.rows, 1))
    if case.ragged:
        borders = draw.random(shape) < 0.25
        segments = borders.cumsum(axis=1).astype(np.int32)
        segments -= segments[:, :1]
        for row in range(case.rows):
            begin = 0
            for at in range(case.length):
                begin = at if at and segments[row, at] != segments[row, at - 1] else begin
                positions[row, at] = at - begin
            if row % 2 and case.length > 4:
                segments[row, -2:], targets[row, -2:] = -1, IGNORE
    targets[draw.random(shape) < 0.2] = IGNORE
    more = ((0, 0), (0, (width or case.length) - case.length))
    return Batch(
        np.pad(tokens, more),
        np.pad(targets, more, constant_values=IGNORE),
        np.pad(segments, more, constant_values=-1),
        np.pad(positions.astype(np.int64), more),
        np.arange(case.rows),
    )


@dataclass
class Outcome:
    """What a layout must not change. weights: and what is learnt otherwise, as a router's bias."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def take(whole: Batch, ids: np.ndarray) -> Batch:
    return Batch(*(array[ids] for array in vars(whole).values()))


def learn(
    case: Case, passes: Passes, optimizers: Optimizers, parts: Any, width: int | None = None
) -> Outcome:
    """Some steps. parts(ids) are this process's micro-batches; width: see `batch`."""
    outcome = Outcome()
    for step in range(STEPS):
        batches = [take(batch(case, step, width), ids) for ids in parts(np.arange(case.rows))]
        with mock.patch.object(_muon, "_zeropower_via_newtonschulz", orthogonal):
            result = train_step(
                passes,
                optimizers,
                CrossEntropy(),
                batches,
                step=step,
                rate=1e-2,
                clip=CLIP,
                z_loss=case.z_loss,
                dropping=dropping(case, passes, batches, step),
            )
        outcome.losses.append(result.loss + result.z_loss)
        outcome.norms.append(result.grad_norm)
    return outcome


def dropping(case: Case, passes: Passes, batches: list[Batch], step: int) -> Dropping | None:
    """As the training loop makes it."""
    if not any(case.dropout):
        return None
    residual, inner = case.dropout
    data = passes.world.data if isinstance(passes, LaidOutPasses) else Peers.alone()
    config = DropoutConfig(residual=residual, inner=inner)
    return Dropping.of(config, [len(each.tokens) for each in batches], case.seed, step, case.rows, data)


def orthogonal(gradient: torch.Tensor, coefficients: Any, steps: int, eps: float) -> torch.Tensor:
    """As torch's Muon (2.13) makes an update, but in the gradient's dtype: in bfloat16, sums in another order
    would differ by more than many a mistake."""
    a, b, c = coefficients
    x = gradient.T if gradient.size(0) > gradient.size(1) else gradient
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if gradient.size(0) > gradient.size(1) else x


def gradients(case: Case, passes: Passes, parts: Any, width: int | None = None) -> None:
    """The gradient of the first step, left in `.grad`."""
    batches = [take(batch(case, 0, width), ids) for ids in parts(np.arange(case.rows))]
    counts, _ = count(passes, CrossEntropy(), batches)
    factors = [torch.from_numpy(CrossEntropy().coefficients(each, counts)) for each in batches]
    passes.gradients(batches, factors, case.z_loss, dropping(case, passes, batches, 0))


def alone(case: Case) -> Outcome:
    """One process, all rows at once."""
    decoder = model(case)
    passes = OnePass(decoder, decoder, CPU, "fp32")
    gradients(case, passes, lambda ids: [ids])
    found = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    outcome = learn(case, passes, Optimizers(decoder, config(case)), lambda ids: [ids])
    outcome.gradients = found
    outcome.weights = {name: tensor.detach().clone() for name, tensor in decoder.state_dict().items()}
    return outcome


def task(rank: int, groups: Groups, case: Case) -> Outcome:
    """The same on one rank of a layout; gradients and weights on rank 0 only."""
    parallel = case.layout
    world = World.create(parallel.grid, rank, CPU, GROUPS, parallel.others)
    passes = LaidOutPasses(model(case), parallel, world, case.width, optimizer=case.optimizer)

    def parts(ids: np.ndarray) -> list[np.ndarray]:
        return split(split(ids, world.data.size)[world.data.index], parallel.parts)

    gradients(case, passes, parts, case.width)
    learnt = {name: p.grad.clone() for name, p in passes.parameters.items() if p.grad is not None}
    found = passes.whole(learnt, passes.part.kept)
    for parameter in passes.parameters.values():
        parameter.grad = None
    optimizers = Optimizers(passes.decoder, config(case), passes.part)
    outcome = learn(case, passes, optimizers, parts, case.width)
    weights = passes.whole(passes.part.state)
    outcome.gradients, outcome.weights = found or {}, weights or {}
    return outcome


def differs(found: Outcome, expected: Outcome) -> list[str]:
    """What is not the same to within rounding."""
    wrong = []
    for name, values, others, close in (
        ("loss", found.losses, expected.losses, 1e-9),
        ("norm", found.norms, expected.norms, 1e-9),
    ):
        wrong += [name for a, b in zip(values, others, strict=True) if not abs(a - b) <= close * abs(b)]
    if not found.weights:  # not rank 0
        return wrong
    for what, mine, theirs, close in (
        ("gradient", found.gradients, expected.gradients, 1e-9),
        ("weight", found.weights, expected.weights, 1e-8),
    ):
        if mine.keys() != theirs.keys():
            wrong.append(f"{what}s of {sorted(mine.keys() ^ theirs.keys())}")
            continue
        # A gradient that is zero but for rounding is held against the others'.
        most = max(float(tensor.abs().max()) for tensor in theirs.values())
        for name, tensor in theirs.items():
            scale = max(float(tensor.abs().max()), 1e-5 * most)
            if not float((mine[name] - tensor).abs().max()) <= close * scale:
                wrong.append(f"{what} {name}")
    return wrong


def drawn(count: int, worlds: tuple[int, ...]) -> list[Case]:
    """The same ones each time."""
    found: list[Case] = []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=cases(worlds))
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found


def size(case: Case) -> int:
    return prod(case.parallel[axis] for axis in AXES)
