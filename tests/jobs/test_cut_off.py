"""`unfinished: mask`: answers that were cut off count beside others and are not learnt from.

What this cannot show: whether that helps a policy to answer at length, which DAPO says (arXiv 2503.14476).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shunter.data.tokenizer import Tokenizer
from shunter.generate.rollout import Rollout
from shunter.jobs import rl
from shunter.post.batch import IGNORE, Sample, Sequences, beside, lay_out, targets
from shunter.post.config import PolicyConfig
from shunter.post.gathering import Gathering
from shunter.post.judged import judge
from shunter.post.objective import Scores, loss_of
from shunter.post.policy import Policy, PolicySettings
from shunter.post.step import Gradient
from shunter.record import events
from tests.draws import some
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks, weights

__all__ = ["model", "talks"]  # fixtures
ENDS = list(range(100, 150))
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"kl": 0.05}, "grpo": {"kl": 0.05}, "dapo": {}, "dr_grpo": {"entropy": 0.01}, "rloo": {},
    "reinforce++": {}, "gspo": {},
}  # fmt: skip


def answers(*cuts: bool) -> list[Rollout]:
    """Of two tokens each, cut off or not."""
    return [
        Rollout(
            [5, 6], [-0.1] * 2, "length" if cut else "stop", prompt=[1], versions=[0, 0], wrote=[True] * 2
        )
        for cut in cuts
    ]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_others_are_compared_with_what_is_masked(algorithm: Any) -> None:
    """As in trl's `mask_truncated_completions`: the reward stays in the group's mean."""
    done = answers(True, False, False)
    config, given = PolicyConfig(algorithm=algorithm), ([1.0, 0.0, 0.5], [0, 0, 0], None)
    plain, masked = judge(config, done, *given), judge(config, done, *given, masks=True)
    assert [each.masked for each in plain] == [False] * 3
    assert [each.masked for each in masked] == [True, False, False]
    for one, other in zip(plain, masked, strict=True):
        np.testing.assert_array_equal(one.known["advantage"], other.known["advantage"])
    assert plain[0].teaches
    assert not masked[0].teaches


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce++"])
def test_what_is_masked_is_not_whitened_with_what_is_learnt_from(algorithm: Any) -> None:
    """Else a step of cut-off answers with small rewards would make all others good."""
    values = [np.zeros(2)] * 5 if algorithm == "ppo" else None
    done, rewards = answers(True, False, False, True, False), [-9.0, 0.0, 0.5, -9.0, 1.0]
    config = PolicyConfig(algorithm=algorithm)
    samples = judge(config, done, rewards, [0] * 5, None, values, masks=True)
    learnt = np.concatenate([each.known["advantage"] for each in samples if not each.masked])
    assert (len(learnt), learnt.mean(), learnt.std()) == pytest.approx((6, 0, 1), abs=1e-6)
    given = [values[:3] if values else None]
    alone = judge(config, answers(False, False, False), [0.0, 0.5, 1.0], [0] * 3, None, *given)
    np.testing.assert_array_equal(learnt, np.concatenate([each.known["advantage"] for each in alone]))


@pytest.mark.parametrize("average", ["sequence", "token", "constant"])
@pytest.mark.parametrize("laid", ["rows", "shared"])
def test_no_term_has_a_gradient_from_what_is_masked(average: Any, laid: str) -> None:
    """It stays one of the sequences that a mean is over, and none of its tokens does."""
    draw = np.random.default_rng(0)
    samples = []
    for number, length in enumerate((3, 2, 4)):
        known = {name: draw.normal(size=length) for name in ("old", "reference", "advantage")}
        wrote = [False, False, *[True] * length]
        samples.append(Sample([1, 2, *range(3, 3 + length)], wrote, known, masked=number == 2))
    batch = lay_out(samples) if laid == "rows" else beside(samples)
    assert Sequences(batch).count == 3
    assert batch.num_valid == targets(samples) == 5
    assert (batch.targets != IGNORE).sum() == 5
    objective = Policy(PolicySettings(average=average, kl=0.1, entropy=0.1, length=7))
    logprob = torch.from_numpy(draw.normal(size=batch.targets.shape)).requires_grad_()
    spread = torch.from_numpy(draw.normal(size=batch.targets.shape)).requires_grad_()
    terms = objective.terms(Scores(logprob, spread), batch, objective.weights(batch))
    loss_of(terms).backward()
    for leaf in (logprob, spread):
        assert leaf.grad is not None
        assert not leaf.grad.numpy()[batch.targets == IGNORE].any()
        assert leaf.grad.numpy()[batch.targets != IGNORE].all()


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The last token of each answer that is learnt from; -1 of one that is masked."""
    found: list[int] = []
    add = Gradient.add

    def noted(gradient: Gradient, batch: Any) -> None:
        seen = Sequences(batch)
        ends, lengths = batch.targets.flatten()[seen.last.numpy()], seen.lengths.numpy()
        found.extend(np.where(lengths > 0, ends, -1).tolist())
        add(gradient, batch)

    monkeypatch.setattr(Gradient, "add", noted)
    return found


@some(
    ("algorithm", "more"),
    [
        *[(algorithm, {}) for algorithm in ALGORITHMS],
        *[(algorithm, {"policy": {"updates": 3}}) for algorithm in ALGORITHMS],
        ("grpo", {"staleness": 1, "how": {"writer": "here"}}),
        ("grpo", {"policy": {"kl": 0.0}, "how": {"writer": "process", "at_once": 4}}),
    ],
    ids=str,
)
def test_every_algorithm_learns_from_those_that_ended(
    work: Work,
    model: Path,
    talks: Path,
    learnt: list[int],
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    more: dict[str, Any],
) -> None:
    monkeypatch.setattr(rl, "stops", lambda folder: ENDS)  # else a random model seldom ends
    ends = {*ENDS, *Tokenizer.load(model).stop_ids}
    policy = {"algorithm": algorithm, **ALGORITHMS[algorithm], **more.get("policy", {})}
    how = {**HOW, **more.get("how", {})}
    asked = {"policy": policy, "train": {"steps": 3, "lr": 1e-3}, "staleness": more.get("staleness", 0)}
    out, metrics = reinforce(work, model, talks, unfinished="mask", how=how, **asked)
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert all(0 < row["rl/finished"] < 1 for row in rows)
    assert ends >= set(learnt) - {-1} != set()
    if algorithm in ("ppo", "dr_grpo"):
        assert -1 in learnt, "others leave them out beforehand"
    assert weights(out) != weights(model)
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("policy", [{"kl": 0.1}, {"entropy": 0.1}, {"algorithm": "ppo"}, {"updates": 2}])
def test_where_all_are_cut_off_nothing_is_learnt(
    work: Work, model: Path, talks: Path, learnt: list[int], policy: dict[str, Any]
) -> None:
    """Not by a momentum either; and the gap is looked at all the same."""
    out, metrics = reinforce(
        work, model, talks, unfinished="mask", max_new_tokens=1, policy=policy, train={"steps": 2, "lr": 1e-3}
    )
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert [(row["rl/finished"], row["rl/idle"]) for row in rows] == [(0.0, 1.0)] * 2
    assert metrics["largest_gap"] > 0
    assert not learnt, "nor by a critic"
    assert weights(out) == weights(model)


def test_what_waits_stays_masked() -> None:
    made, again = Gathering(), Gathering()
    known = {"old": np.zeros(1), "advantage": np.ones(1)}
    made.add([Sample([1, 2], [False, True], known, masked) for masked in (True, False)], 2)
    again.restore(made.state())
    assert [each.masked for each in again.take()] == [True, False]


def test_roles_do_not_mask(work: Work, model: Path, talks: Path) -> None:
    with pytest.raises(ValueError, match="unfinished: mask does not go with"):
        reinforce(work, model, talks, unfinished="mask", how={**HOW, "placement": {"backend": "inline"}})
