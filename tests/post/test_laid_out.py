"""Any objective under any layout: the loss, what is told, each gradient and the weights of one process.

In float64 against `scored_step` in one process with all samples in one batch, which tests/post/test_step.py
and test_objectives.py hold against plain loops. What this cannot show: faults of float32, bfloat16 and NCCL,
and of experts with a capacity, which are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shunter.config.errors import ShunterError
from shunter.parallel.mesh import Groups, Peers
from shunter.post.batch import Sample, lay_out
from shunter.post.laid_out import VALUE, LaidOutScorer, laid_out_step
from shunter.post.laid_out_pupil import dealt
from shunter.post.layout import row_multiple, row_width, settled
from shunter.post.objective import Likelihood, ScoreObjective
from shunter.post.policy import Policy, PolicySettings, Value
from shunter.post.preference import DPO, BradleyTerry, SimPO
from shunter.post.step import Scorer, scored_step
from shunter.train.config import TrainConfig
from shunter.train.optim import Optimizers
from shunter.train.pipeline import LaidOutPasses
from shunter.train.world import World
from tests.parallel.pool import GROUPS, Pool
from tests.post.layouts import draw as draw_samples
from tests.train import layouts
from tests.train.layouts import CPU, Case, cases

STEPS, CLIP, RATE = 2, 0.5, 1e-2
OBJECTIVES: dict[str, ScoreObjective] = {
    "sft": Likelihood(),
    "dpo": DPO(0.3),
    "dpo-normalised": DPO(2.0, normalised=True, smoothing=0.1),
    "simpo": SimPO(2.0, 0.5),
    "reward model": BradleyTerry(0.01),
    "value": Value(0.3, 0.5),
    "ppo": Policy(PolicySettings(average="token")),
    "grpo": Policy(PolicySettings(kl=0.05)),
    "dapo": Policy(PolicySettings(average="token", clip_high=0.28)),
    "dr-grpo": Policy(PolicySettings(average="constant", length=16)),
    "rloo": Policy(PolicySettings(ratio="sum")),
    "gspo": Policy(PolicySettings(ratio="sequence", clip_low=0.1, clip_high=0.1)),
    "with entropy": Policy(PolicySettings(average="token", entropy=0.05)),
}


@dataclass(frozen=True)
class Post:
    """A layout and a model as for pre-training, an objective by name, and units of two samples."""

    case: Case
    objective: str
    lengths: list[tuple[int, int]]
    temperature: float
    samples: tuple[Sample, ...] = ()

    @property
    def units(self) -> list[tuple[Sample, Sample]]:
        return list(zip(self.samples[0::2], self.samples[1::2], strict=True))

    @property
    def judges(self) -> ScoreObjective:
        return OBJECTIVES[self.objective]


@st.composite
def posts(
    draw: st.DrawFn,
    worlds: tuple[int, ...] = (2, 3, 4),
    must: tuple[str, ...] = (),
    names: tuple[str, ...] = tuple(OBJECTIVES),
) -> Post:
    """Without samples yet: a draw that is thrown away shall cost nothing."""
    case = draw(cases(worlds, must=must))
    name = draw(st.sampled_from(names))
    parallel = {**case.parallel, "vocabulary": None, "pad_experts": False}
    if "value" in OBJECTIVES[name].needs:
        parallel["zero"] = 0
    spec = case.spec
    if spec["experts"] is not None:
        spec = {**spec, "experts": {**spec["experts"], "capacity": None}}
    case = replace(case, parallel=parallel, spec=spec, dropout=(0.0, 0.0), optimizer="adamw")
    count = case.layout.data * case.layout.parts + draw(st.integers(0, 2))
    one = st.integers(0 if "value" not in OBJECTIVES[name].needs else 1, 9)
    lengths = draw(st.lists(st.tuples(one, one), min_size=count, max_size=count))
    return Post(case, name, lengths, draw(st.sampled_from([1.0, 0.7])))


def near(post: Post) -> tuple[Sample, ...]:
    """Samples whose `old` and `reference` lie near what the model says, lest all ratios be clipped."""
    decoder, vocabulary = layouts.model(post.case), post.case.spec["vocab_size"]
    scorer = Scorer(decoder, CPU, temperature=post.temperature)
    drawn = [
        replace(sample, ids=[i % vocabulary for i in sample.ids])
        for sample in draw_samples([n for unit in post.lengths for n in unit], post.case.seed)
    ]
    batch = lay_out(drawn)
    said = scorer.logprobs([batch])[0]
    found = []
    for sample, says, targets in zip(drawn, said, batch.targets, strict=True):
        mine = says[targets != -100]
        known = {name: mine + 0.2 * sample.known[name] for name in ("old", "reference")}
        found.append(replace(sample, known={**sample.known, **known}))
    return tuple(found)


def head_of(post: Post) -> nn.Linear | None:
    """Drawn: zeros would hide mistakes."""
    if "value" not in post.judges.needs:
        return None
    head = nn.Linear(post.case.spec["dim"], 1).double()
    draw = torch.Generator().manual_seed(post.case.seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return head


@dataclass
class Outcome:
    """What a layout must not change; gradients of the first step."""

    losses: list[float]
    norms: list[float]
    told: list[dict[str, float]]
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    says: list[torch.Tensor]


CONFIG = TrainConfig(steps=STEPS, optimizer="adamw")


def says(scorer: Any, post: Post) -> list[torch.Tensor]:
    """Scores of all samples together."""
    with torch.no_grad():
        found = scorer(lay_out(list(post.samples)), post.judges.needs)
    valid = torch.from_numpy(lay_out(list(post.samples)).targets != -100)
    return [each[valid] for each in (found.logprob, found.entropy, found.value) if each is not None]


def alone(post: Post) -> Outcome:
    decoder, head = layouts.model(post.case), head_of(post)
    module: nn.Module = decoder if head is None else nn.ModuleDict({"decoder": decoder, "value": head})
    scorer = Scorer(decoder, CPU, value=head, temperature=post.temperature)
    optimizers = Optimizers(module, CONFIG)
    first: dict[str, torch.Tensor] = {}
    update = optimizers.step

    def step(rate: float) -> None:
        for name, p in module.named_parameters():
            if p.grad is not None:
                first.setdefault(name.removeprefix("decoder."), p.grad.clone())
        update(rate)

    optimizers.step = step  # type: ignore[method-assign]
    before = says(scorer, post)
    batch = [lay_out(list(post.samples))]
    done = [
        scored_step(scorer, optimizers, post.judges, batch, step=i, rate=RATE, clip=CLIP)
        for i in range(STEPS)
    ]
    state = {name.removeprefix("decoder."): t.detach().clone() for name, t in module.state_dict().items()}
    return outcome(done, first, state, before)


def task(rank: int, groups: Groups, post: Post) -> Outcome:
    """The same on one rank; gradients and weights on rank 0 only."""
    parallel = post.case.layout
    world = World.create(parallel.grid, rank, CPU, GROUPS)
    width = row_width(parallel, max(len(sample.ids) for sample in post.samples))
    passes = LaidOutPasses(layouts.model(post.case), parallel, world, width)
    scorer = LaidOutScorer(
        passes,
        value=head_of(post),
        temperature=post.temperature,
        width=width if parallel.cp > 1 else None,
        multiple=row_multiple(parallel),
    )
    optimizers = Optimizers(passes.decoder, CONFIG, passes.part)
    first: dict[str, torch.Tensor] = {}
    update = optimizers.step

    def step(rate: float) -> None:
        for name, p in passes.parameters.items():
            if p.grad is not None and not done:
                first[name] = p.grad.clone()
        update(rate)

    optimizers.step = step  # type: ignore[method-assign]
    before = says(scorer, post)
    done: list[Any] = []
    for i in range(STEPS):
        mine = dealt(post.units, world.data, parallel.parts)
        batches = [lay_out([sample for unit in part for sample in unit]) for part in mine]
        done.append(laid_out_step(scorer, optimizers, post.judges, batches, step=i, rate=RATE, clip=CLIP))
    gradients = passes.whole(first, passes.part.kept) or {}
    weights = passes.whole(passes.part.state) or {}
    return outcome(done, gradients, weights, before)


def outcome(done: list[Any], gradients: Any, weights: Any, before: list[torch.Tensor]) -> Outcome:
    losses, norms = [each.loss for each in done], [each.grad_norm for each in done]
    return Outcome(losses, norms, [dict(each.told) for each in done], gradients, weights, before)


def differs(found: Outcome, expected: Outcome) -> list[str]:
    """What is not the same to within rounding."""
    wrong = []
    for name, mine, theirs in (
        ("loss", found.losses, expected.losses),
        ("norm", found.norms, expected.norms),
    ):
        wrong += [name for a, b in zip(mine, theirs, strict=True) if not abs(a - b) <= 1e-9 * max(1, abs(b))]
    for told, other in zip(found.told, expected.told, strict=True):
        if told.keys() != other.keys():
            wrong.append(f"told {sorted(told.keys() ^ other.keys())}")
            continue
        wrong += [f"told {k}" for k in told if not abs(told[k] - other[k]) <= 1e-9 * max(1, abs(other[k]))]
    for a, b in zip(found.says, expected.says, strict=True):
        wrong += ["scores"] if not torch.allclose(a, b, rtol=1e-9, atol=1e-10) else []
    if not found.weights:  # not rank 0
        return wrong
    for what, mine, theirs, close in (
        ("gradient", found.gradients, expected.gradients, 1e-8),
        ("weight", found.weights, expected.weights, 1e-6),
    ):
        most = max(float(tensor.abs().max()) for tensor in theirs.values())
        for name in mine.keys() | theirs.keys():
            a, b = mine.get(name), theirs.get(name)
            if b is None or a is None:  # a gradient of zeros is as good as none
                there = a if b is None else b
                wrong += [f"{what} of {name}"] if what == "weight" or float(there.abs().max()) else []
                continue
            scale = max(float(b.abs().max()), 1e-5 * most)
            wrong += [f"{what} {name}"] if not float((a - b).abs().max()) <= close * scale else []
    return wrong


def check(pool: Pool, post: Post) -> None:
    post = replace(post, samples=near(post))
    grid, expected = post.case.layout.grid, alone(post)
    answers = pool.run(task, grid.size, post, grid)
    wrong = {rank: found for rank, each in enumerate(answers) if (found := differs(each, expected))}
    assert not wrong


@settings(max_examples=3)
@given(post=posts())
def test_objectives_under_layouts_of_up_to_four_ranks(pool: Pool, post: Post) -> None:
    check(pool, post)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_with_rows_dealt_and_spread(pool: Pool, name: str) -> None:
    """dp and cp together; the first example is the simplest there is, the second any."""

    @settings(max_examples=2)
    @given(post=posts((4,), must=("dp", "cp"), names=(name,)))
    def run(post: Post) -> None:
        check(pool, post)

    run()


@pytest.mark.long
@pytest.mark.parametrize("name", OBJECTIVES)
def test_sixteen_layouts_of_each_objective(pool: Pool, name: str) -> None:
    @settings(max_examples=16)
    @given(post=posts(names=(name,)))
    def run(post: Post) -> None:
        check(pool, post)

    run()


def test_units_are_dealt_each_once_and_long_ones_to_all() -> None:
    units = [(Sample([1] * (n + 1), [False] + [True] * n),) * 2 for n in (9, 1, 8, 2, 7, 3, 6)]
    for ranks in (1, 2, 3):
        dealt_out = [
            dealt(units, replace(Peers.alone(), ranks=tuple(range(ranks)), index=i), 2) for i in range(ranks)
        ]
        lengths = sorted(len(unit[0].ids) - 1 for mine in dealt_out for part in mine for unit in part)
        assert lengths == [1, 2, 3, 6, 7, 8, 9]
        assert all(part for mine in dealt_out for part in mine)
        sums = [sum(len(unit[0].ids) for part in mine for unit in part) for mine in dealt_out]
        assert max(sums) - min(sums) <= 2


def test_ranks_do_as_much_where_a_few_units_are_long() -> None:
    """Dealt out by turns in the order of their lengths, the ranks would have 72 and 96 tokens."""
    units = [(Sample([1] * n, [False] + [True] * (n - 1)),) for n in (50, 49, 30, 10, 9, 8, 7, 5)]
    peers = [replace(Peers.alone(), ranks=(0, 1), index=i) for i in (0, 1)]
    sums = [sum(len(u[0].ids) for part in dealt(units, each, 2) for u in part) for each in peers]
    assert sum(sums) == 168
    assert abs(sums[0] - sums[1]) <= 14


def test_too_few_pairs_for_a_layout_are_refused() -> None:
    from shunter.train.config import Parallel

    assert settled(Parallel(dp=2), 8, 100, 200).parts == 2
    assert settled(Parallel(cp=2), 3, 100, 100).parts == 3
    assert settled(Parallel(pp=2), 4, 100, 100).parts == 4
    with pytest.raises(ShunterError, match="4 pairs a step cannot be cut into 4 micro-batches on each of 2"):
        settled(Parallel(pp=2, dp=2), 4, 100, 100)


def test_a_value_head_s_name_is_no_decoder_s() -> None:
    assert not any(name.startswith(VALUE) for name in layouts.model(layouts.drawn(1, (1,))[0]).state_dict())
