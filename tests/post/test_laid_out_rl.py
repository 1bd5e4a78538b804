"""`rl` under any layout: the answers, rewards and weights of one process, and a run that goes on elsewhere.

In float64, against `Reinforcement` in one process, on layouts and models drawn at random. What this cannot
show: faults of float32, bfloat16 and NCCL (the gap between trainer and generator is looked at in every run),
and ranks that are ended by the kernel (tests/jobs/test_rl_laid_out.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed import PrefixStore

from shunter.generate.config import SamplingConfig
from shunter.layout.grid import Grid
from shunter.parallel.heartbeat import Heartbeat
from shunter.parallel.mesh import Groups
from shunter.post import laid_out_rl
from shunter.post.before import LaidOutBefore
from shunter.post.config import PolicyConfig, PostTrain, RlHow
from shunter.post.course import Course, Pupil
from shunter.post.laid_out_pupil import LaidOutPupil
from shunter.post.laid_out_rl import Elsewhere, LaidOutReinforcement
from shunter.post.layout import ANSWER
from shunter.post.prompts import Prompt, Read
from shunter.post.reinforce import Reinforcement, room_of
from shunter.post.rewards import Graded, Grader, Item
from shunter.post.step import Scorer
from shunter.record import points
from shunter.record.events import EventLog
from shunter.train.loop import Place
from shunter.train.world import World
from tests.draws import some
from tests.parallel.pool import GROUPS, Pool
from tests.train import layouts
from tests.train.layouts import CPU, Case, cases

STEPS, GROUP = 2, 2
POLICIES: dict[str, dict[str, Any]] = {
    "grpo": {"kl": 0.05},
    "updates": {"algorithm": "grpo", "updates": 2},
    "ppo": {"algorithm": "ppo", "kl": 0.02},
    "dapo": {"algorithm": "dapo", "entropy": 0.01},
    "rloo": {"algorithm": "rloo", "kl": 0.1},
    "reinforce++": {"algorithm": "reinforce++", "epochs": 2},
    "gspo": {"algorithm": "gspo"},
}


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


@dataclass(frozen=True)
class Lesson:
    """A layout and a model as for pre-training, and what is learnt. answers: of an update, at least. place:
    a folder that all ranks see. masks: as of `judge`."""

    case: Case
    policy: str = "grpo"
    answers: int = 4
    temperature: float = 1.0
    steps: int = STEPS
    how: dict[str, Any] = field(default_factory=dict)
    place: str = ""
    kill: tuple[str, int] | None = None
    masks: bool = False

    @property
    def config(self) -> PolicyConfig:
        return PolicyConfig(**POLICIES[self.policy])

    @property
    def train(self) -> PostTrain:
        return PostTrain(steps=self.steps, lr=1e-2)

    @property
    def per_step(self) -> int:
        return -(-self.answers * self.config.updates // GROUP)


@st.composite
def lessons(
    draw: st.DrawFn, worlds: tuple[int, ...] = (2, 3, 4), names: Sequence[str] = tuple(POLICIES)
) -> Lesson:
    case = plain(draw(cases(worlds)))
    name = draw(st.sampled_from(names))
    if PolicyConfig(**POLICIES[name]).algorithm == "ppo":
        case = replace(case, parallel={**case.parallel, "zero": 0})
    # With twice as many, prompts are enough for each micro-batch to have rows that answers share.
    answers = case.layout.data * case.layout.parts * draw(st.integers(1, 2)) + draw(st.integers(0, 2))
    return Lesson(case, name, answers, draw(st.sampled_from([1.0, 0.7])))


def plain(case: Case) -> Case:
    """Without what learning from answers has no part for."""
    spec = case.spec
    if spec["experts"] is not None:
        spec = {**spec, "experts": {**spec["experts"], "capacity": None}}
    parallel = {**case.parallel, "vocabulary": None, "pad_experts": False}
    return replace(case, parallel=parallel, spec=spec, dropout=(0.0, 0.0), optimizer="adamw")


def small(**parallel: Any) -> Case:
    """A dense model under this layout."""
    spec = {
        "dim": 12, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "ffn_dim": 9,
        "vocab_size": 29, "max_positions": 64, "tied": True, "qkv_bias": True, "experts": None,
    }  # fmt: skip
    return Case(spec, parallel, 1, 8, 0.0, False, 5)


class Numbers:
    """In the place of a tokenizer: tokens as numbers."""

    stop_ids = (0,)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Even:
    """Rewards the share of even tokens, and length a little."""

    name = "even"

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        said = [[int(word) for word in item.answer.split()] for item in items]
        return [sum(n % 2 == 0 for n in each) / max(1, len(each)) + 0.01 * len(each) for each in said]

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        return [(Item(like.prompt, "1 2", ""), 0.52)]


def prompts(lesson: Lesson) -> Read:
    draw = np.random.default_rng(lesson.case.seed)
    items = []
    for number in range(7):
        ids = draw.integers(1, lesson.case.spec["vocab_size"], int(draw.integers(1, 7))).tolist()
        items.append(Prompt(str(number), ids, " ".join(map(str, ids)), ""))
    return Read(items, [each.text for each in items], 0)


def head(lesson: Lesson) -> nn.Linear:
    """Drawn: zeros would hide mistakes."""
    made = nn.Linear(lesson.case.spec["dim"], 1).double()
    draw = torch.Generator().manual_seed(lesson.case.seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return made


class Still:
    """Asks for nothing."""

    def stop_requested(self) -> bool:
        return False

    def take_save_request(self) -> bool:
        return False


def made(lesson: Lesson, world: World | None) -> Reinforcement:
    """The lessons of one process, or of a rank."""
    rank = 0 if world is None else world.rank
    log = Path(lesson.place) / f"log-{rank}"
    place = Place("rl", Path(lesson.place), log, EventLog(log / "events.jsonl"), Still())
    how = RlHow(device="cpu", threads=1, micro_tokens=64, log_every=1, track=[], **lesson.how)
    course = Course(lesson.train, how, place, "rl/reward", world)
    read, sampling = (
        prompts(lesson),
        SamplingConfig(max_new_tokens=6, temperature=lesson.temperature, batch=64),
    )
    decoder, wants = layouts.model(lesson.case), lesson.config.algorithm == "ppo"
    grader = Grader([(Even(), 1.0)]) if rank == 0 else Elsewhere()
    critic: Pupil | None = None
    kind: Any = Reinforcement
    if world is None:
        policy = Pupil(decoder, lesson.train, CPU, temperature=lesson.temperature)
        if wants:
            critic = Pupil(layouts.model(lesson.case), lesson.train, CPU, value=head(lesson), lr=2e-2)
        first = layouts.model(lesson.case)
        before: Any = Scorer(first, CPU, temperature=lesson.temperature)
    else:
        kind = LaidOutReinforcement
        shared: dict[str, Any] = {
            "units": GROUP * lesson.per_step // lesson.config.updates,
            "longest": room_of(read, sampling, decoder.spec, None),
            "micro_tokens": how.micro_tokens,
            "unit": ANSWER,
        }
        parallel = lesson.case.layout
        laid_out = LaidOutPupil(
            decoder, lesson.train, world, parallel, temperature=lesson.temperature, **shared
        )
        policy = laid_out
        if wants:
            critic = LaidOutPupil(
                layouts.model(lesson.case),
                lesson.train,
                world,
                parallel,
                value=head(lesson),
                lr=2e-2,
                **shared,
            )
        before = LaidOutBefore(laid_out.laid_out)
    found: Reinforcement = kind(
        course, policy, lambda: before, critic, read, Numbers(), grader, lesson.config, sampling,
        group=GROUP, per_step=lesson.per_step, max_gap=1e-9, seed=lesson.case.seed,
        masks=lesson.masks,
    )  # fmt: skip
    return found


@dataclass
class Outcome:
    """What a layout must not change. told: of each step. shown: answers that people see. reused: answers
    read from the journal. weights: on rank 0 alone. twice: bytes held for learning while a copy writes."""

    told: list[dict[str, float]]
    rewards: list[float]
    shown: list[Any]
    reused: int
    weights: dict[str, torch.Tensor]
    twice: int


def learnt(lesson: Lesson, world: World | None) -> Outcome:
    """Some steps, or what is left of them; up to where `kill` says."""
    it = made(lesson, world)
    told: list[dict[str, float]] = []
    step = it.step

    def noted(number: int) -> Any:
        values = step(number)
        told.append(dict(values))
        return values

    def hook(name: str, facts: dict[str, Any]) -> None:
        if (name, facts.get("step")) == lesson.kill:
            raise Killed

    it.step = noted  # type: ignore[method-assign]
    if lesson.kill is not None:
        points.install(hook)
    try:
        it.course.run(it)
    except Killed:
        pass
    finally:
        points.install(None)
        it.close()
    weights: dict[str, torch.Tensor] = {}
    for name, pupil in it.pupils.items():
        if isinstance(pupil, LaidOutPupil):
            state = pupil.passes.whole(pupil.passes.part.state) or {}
        else:
            state = dict(pupil.module.state_dict())
        weights |= {f"{name}.{key.removeprefix('decoder.')}": each.clone() for key, each in state.items()}
    twice = it.writes.bill.redundant if isinstance(it, LaidOutReinforcement) else 0
    return Outcome(told, it.rewards, it.samples, it.journal.reused, weights, twice)


def task(rank: int, groups: Groups, lesson: Lesson) -> Outcome:
    return learnt(lesson, World.create(lesson.case.layout.grid, rank, CPU, GROUPS))


def differs(found: Outcome, expected: Outcome, close: float = 1e-7) -> list[str]:
    """What is not the same to within rounding; answers and rewards are the same to the bit."""
    wrong = [
        name for name in ("rewards", "shown", "twice") if getattr(found, name) != getattr(expected, name)
    ]
    for number, (mine, theirs) in enumerate(zip(found.told, expected.told, strict=True)):
        if mine.keys() != theirs.keys():
            wrong.append(f"told {sorted(mine.keys() ^ theirs.keys())}")
            continue
        for name, value in theirs.items():
            near = abs(mine[name] - value) <= close * max(1.0, abs(value))
            if not near and not name.endswith("_seconds"):
                wrong.append(f"{name} of step {number}: {mine[name]} for {value}")
    for name, tensor in expected.weights.items() if found.weights else ():
        scale = max(1e-3, float(tensor.abs().max()))
        if not float((found.weights[name] - tensor).abs().max()) <= close * scale:
            wrong.append(f"weight {name}")
    return wrong


def run(pool: Pool, lesson: Lesson, grid: Grid | None = None) -> list[Outcome]:
    grid = grid or lesson.case.layout.grid
    return pool.run(task, grid.size, lesson, grid)


def check(pool: Pool, lesson: Lesson, folder: Path) -> None:
    place = folder / str(len(list(folder.iterdir())))
    alone = learnt(replace(lesson, place=str(place / "alone")), None)
    answers = run(pool, replace(lesson, place=str(place / "ranks")))
    assert set(answers[0].weights) == set(alone.weights)
    wrong = {rank: found for rank, each in enumerate(answers) if (found := differs(each, alone))}
    assert not wrong
    assert any(told["rl/idle"] == 0 for told in alone.told), "something was learnt"


@pytest.mark.parametrize(
    ("parallel", "policy"),
    [
        ({"dp": 2}, "updates"),
        ({"fsdp": 2}, "grpo"),
        ({"cp": 2}, "gspo"),
        ({"tp": 2}, "dapo"),
        ({"pp": 2}, "ppo"),
    ],
    ids=str,
)
def test_each_axis(pool: Pool, tmp_path: Path, parallel: dict[str, int], policy: str) -> None:
    check(pool, Lesson(small(**parallel), policy, 8, 0.7), tmp_path)


@some(
    ("parallel", "policy"),
    [({"cp": 2}, "dapo"), ({"dp": 2}, "ppo"), ({"tp": 2}, "dapo"), ({"pp": 2}, "ppo")],
    ids=str,
)
def test_masked_answers_on_each_axis(
    pool: Pool, tmp_path: Path, parallel: dict[str, int], policy: str
) -> None:
    """Most are cut off, so ranks have rows of which nothing is learnt from."""
    check(pool, Lesson(small(**parallel), policy, 8, masks=True), tmp_path)


@settings(max_examples=2)
@given(lesson=lessons())
def test_layouts_write_and_learn_as_one_process(pool: Pool, tmp_path: Path, lesson: Lesson) -> None:
    check(pool, lesson, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", POLICIES)
def test_eight_layouts_of_each_algorithm(pool: Pool, tmp_path: Path, name: str) -> None:
    @settings(max_examples=8)
    @given(lesson=lessons(names=(name,)))
    def run(lesson: Lesson) -> None:
        check(pool, lesson, tmp_path)

    run()


def test_rewards_that_stay_on_their_ranks_are_seen(pool: Pool, tmp_path: Path) -> None:
    """A known bug, put in on purpose: each rank compares its own answers with nothing for the others'."""
    lesson = Lesson(small(dp=2), "grpo", 7)
    alone = learnt(replace(lesson, place=str(tmp_path / "alone")), None)
    good, bad = (replace(lesson, place=str(tmp_path / name)) for name in ("good", "bad"))
    grid = lesson.case.layout.grid
    assert not differs(pool.run(task, 2, good, grid)[0], alone)
    wrong = differs(pool.run(locally, 2, bad, grid)[0], alone)
    assert {each.split()[0] for each in wrong} >= {"rewards", "weight"}


def test_while_one_rank_grades_no_other_is_in_a_collective(pool: Pool, tmp_path: Path) -> None:
    """There, the group's timeout would end it. Rank 0's rule grades when it has heard where rank 1 waits."""
    lesson = Lesson(small(dp=2), answers=8, steps=1, place=str(tmp_path))
    assert pool.run(where_others_wait, 2, lesson, lesson.case.layout.grid) == ["heartbeat", ""]


def where_others_wait(rank: int, groups: Groups, lesson: Lesson) -> str:
    """As rank 0 heard it when it graded."""
    assert GROUPS.store is not None
    store, heard = PrefixStore(lesson.place, GROUPS.store), []
    grade, wait, told = Even.grade, Heartbeat._wait, laid_out_rl.told_by_all

    def late(self: Even, items: Sequence[Item]) -> list[float | str]:
        heard.append(store.get("where").decode())
        return grade(self, items)

    def waits(self: Heartbeat, what: str) -> None:
        if what == "hear what answers are worth" and rank == 1:
            store.set("where", "heartbeat")
        wait(self, what)

    def tells(fact: Any, *more: Any) -> list[Any]:
        if not fact and rank == 1 and not store.check(["where"]):  # it has nothing to tell of rewards
            store.set("where", "collective")
        return told(fact, *more)

    with (
        mock.patch.object(Even, "grade", late),
        mock.patch.object(Heartbeat, "_wait", waits),
        mock.patch.object(laid_out_rl, "told_by_all", tells),
    ):
        task(rank, groups, lesson)
    return "".join(heard)


def test_a_rank_without_rules_holds_what_a_checkpoint_says_and_grades_nothing(tmp_path: Path) -> None:
    """Of each part of a grader that training asks for; of none is it a copy that says something else."""
    lesson = Lesson(small(), place=str(tmp_path))
    it = made(lesson, World.create(lesson.case.layout.grid, 0, CPU, GROUPS))
    it.grader.failures, it.grader.canaries = {"even": 3}, 8
    said = it.state()
    it.grader = Elsewhere()
    assert (it.grader.ends(), it.state()["failures"], it.state()["canaries"]) == ({}, {}, 0)
    it.restore(said)
    assert it.state() == said
    it.close()
    assert not isinstance(it.grader, Grader), "half of one"
    with pytest.raises(RuntimeError, match="the rules are with rank 0"):
        it.grader.grade([Item("", "1", "")])


def locally(rank: int, groups: Groups, lesson: Lesson) -> Outcome:
    grade = LaidOutReinforcement._grade

    def local(self: LaidOutReinforcement, prompts: Sequence[Prompt], done: Sequence[Any]) -> list[Graded]:
        mine = self._mine(len(done))
        every = enumerate(grade(self, prompts, done))
        return [one if at in mine else Graded(0.0, one.parts) for at, one in every]

    with mock.patch.object(LaidOutReinforcement, "_grade", local):
        return task(rank, groups, lesson)


@pytest.mark.parametrize(
    ("kill", "steps"),
    [(("train.step", 3), 2), pytest.param(("train.update", 2), 1, marks=pytest.mark.long)],
    ids=str,
)
def test_killed_a_layout_goes_on_with_the_same_bits_and_one_process_goes_on_too(
    pool: Pool, tmp_path: Path, kill: tuple[str, int], steps: int
) -> None:
    """With a critic. steps: whose answers are in the journal and in no checkpoint, four on each rank."""
    how = {"deterministic": True, "checkpoint_every": 2}
    lesson = Lesson(small(fsdp=2), "ppo", 8, steps=4, how=how)
    whole = run(pool, replace(lesson, place=str(tmp_path / "whole")))
    cut = replace(lesson, place=str(tmp_path / "cut"))
    for each in run(pool, replace(cut, kill=kill)):
        assert len(each.told) == kill[1]
    shutil.copytree(tmp_path / "cut", tmp_path / "one")
    again = run(pool, cut)
    assert [each.reused for each in again] == [4 * steps, 4 * steps]
    assert again[0].rewards == whole[0].rewards
    assert again[0].shown == whole[0].shown
    assert again[0].weights.keys() == whole[0].weights.keys()
    for name, tensor in whole[0].weights.items():
        assert tensor.equal(again[0].weights[name]), name
    one = learnt(replace(lesson, place=str(tmp_path / "one")), None)
    assert one.reused == 8 * steps
    assert not differs(replace(one, told=[]), replace(whole[0], told=[]))


def test_a_layout_goes_on_where_one_process_was(pool: Pool, tmp_path: Path) -> None:
    lesson = Lesson(small(tp=2, sequence=False), "grpo", 4, steps=3, how={"checkpoint_every": 2})
    whole = learnt(replace(lesson, place=str(tmp_path / "whole")), None)
    cut = replace(lesson, place=str(tmp_path / "cut"))
    learnt(replace(cut, kill=("train.step", 2)), None)
    again = run(pool, cut)
    assert sum(each.reused for each in again) == 4
    assert not differs(replace(again[0], told=[]), replace(whole, told=[]))


def test_ranks_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as their launcher has told them; each took all cores, where none were given."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    lesson = Lesson(small())
    world = World.create(lesson.case.layout.grid, 0, CPU, GROUPS)
    place = Place("rl", tmp_path, tmp_path, EventLog(tmp_path / "events.jsonl"), Still())
    assert Course(lesson.train, RlHow(device="cpu"), place, "rl/reward", world).threads == 3
    assert Course(lesson.train, RlHow(device="cpu", threads=2), place, "rl/reward", world).threads == 2
