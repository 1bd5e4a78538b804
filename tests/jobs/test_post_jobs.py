"""preferences, dpo, reward_model and rl on a tiny model: what they write, what they refuse, and kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.data import tokenizer as tokenizers
from shunter.data.tokenizer import Tokenizer
from shunter.jobs import dpo, preferences, reward_model, rl
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model, save_model
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.recipe.job import Stopped
from shunter.record import events
from tests.jobs.conftest import Still, Work

HOW = {"threads": 1, "log_every": 1, "checkpoint_every": 2, "micro_tokens": 256, "track": []}


def spec(vocab: int) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=vocab, max_positions=48, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        ffn_dim=48, qk_norm=True, tied=True, family="qwen3",
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    texts = [f"What is {a} plus {b}? {a + b}" for a in range(10) for b in range(10)]
    tokenizers.save(tokenizers.train(texts, 300), folder, max_length=48)
    tokenizer = Tokenizer.load(folder)
    decoder = Decoder(spec(tokenizer.vocab_size))
    init_weights(decoder, 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a fresh model's blocks add nothing: its last hidden state knows one token only
        for weight in decoder.layers.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    save_model(decoder, folder.parent / "out", tokenizer_folder=folder, eos_token_id=tokenizer.stop_ids)
    return folder.parent / "out"


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    folder = tmp_path / "talks" / "out"
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(12)), ("heldout", range(12, 16))):
        lines = []
        for n in numbers:
            messages = [
                {"role": "user", "content": f"What is {n} plus 1?"},
                {"role": "assistant", "content": str(n + 1)},
            ]
            lines.append(json.dumps({"id": f"{n}", "task": "sums", "messages": messages}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs" / "out"
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(10)), ("heldout", range(10, 14))):
        lines = []
        for n in numbers:
            messages = [{"role": "user", "content": f"What is {n} plus 1?"}]
            pair = {"id": f"{n}", "messages": messages, "chosen": "plus", "rejected": f"{n} {n} {n}"}
            lines.append(json.dumps(pair) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def reinforce(
    work: Work, model: Path, talks: Path, name: str = "rl", **more: Any
) -> tuple[Path, dict[str, Any]]:
    control = more.pop("control", None)
    config = {
        # Any text that has a letter is worth something, so that a model that knows nothing is told apart.
        "model": "m", "prompts": "t", "rewards": [{"kind": "format", "pattern": ".*[a-m].*"}], "group": 4,
        "prompts_per_step": 3, "max_new_tokens": 5, "train": {"steps": 5, "lr": 1e-3}, "how": HOW, **more,
    }  # fmt: skip
    inputs = {"model": model, "prompts": talks}
    if "reward_model" in config:
        inputs["reward_model"] = config["reward_model"]
        config["reward_model"] = "r"
    return work(rl.JOB, config, inputs=inputs, name=name, control=control)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_rl_writes_a_model_with_its_rewards_and_samples(work: Work, model: Path, talks: Path) -> None:
    out, metrics = reinforce(work, model, talks, how={**HOW, "divergence": True})
    assert load_model(out).spec == load_model(model).spec
    assert weights(out) != weights(model)
    rewards = json.loads((out / "rewards.json").read_text())
    assert len(rewards) == 5
    assert metrics["reward_first"] == rewards[0]
    assert 0 < metrics["largest_gap"] < 1e-5
    told = {each["phase"]: each for each in metrics["account"]["phases"]}
    assert list(told) == ["writing", "grading", "preparation", "learning"]
    assert all(each["seconds"] > 0 for each in told.values())
    assert [name for name in told if not told[name]["plan_seconds"]] == ["grading"]
    assert metrics["account"]["plan_step_seconds"] == pytest.approx(
        sum(each["plan_seconds"] or 0.0 for each in told.values())
    )
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert [row["rl/reward"] for row in rows] == rewards
    needed = {
        "rl/kl",
        "rl/length",
        "rl/gap",
        "rl/largest_gap",
        "rl/staleness",
        "rl/flat_groups",
        "train/grad_norm",
    }
    assert needed <= rows[-1].keys()
    assert rows[0]["rl/kl"] == pytest.approx(0, abs=1e-6)
    assert {row["rl/staleness"] for row in rows} == {0}
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {sample["task"] for sample in samples} == {f"step {n}" for n in range(1, 6)}
    assert Tokenizer.load(out).template


ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"kl": 0.05, "epochs": 2},
    "grpo": {"kl": 0.05, "updates": 2},
    "dapo": {},
    "dr_grpo": {"entropy": 0.01},
    "rloo": {"kl": 0.1},
    "reinforce++": {"kl": 0.1},
    "gspo": {"epochs": 2},
}


# The others differ from these two in their objective alone, which tests/post compares with a plain one.
SHORT = ("ppo", "grpo")


@pytest.mark.parametrize(
    "algorithm", [a if a in SHORT else pytest.param(a, marks=pytest.mark.long) for a in ALGORITHMS]
)
def test_every_algorithm_learns_what_is_rewarded(
    work: Work, model: Path, talks: Path, algorithm: str
) -> None:
    """A random model with a small vocabulary of letters: the reward rises within 15 steps."""
    policy = {"algorithm": algorithm, **ALGORITHMS[algorithm]}
    how = {**HOW, "checkpoint_every": 100}
    out, metrics = reinforce(
        work, model, talks, policy=policy, group=8, train={"steps": 15, "lr": 1e-2}, how=how
    )
    rewards = json.loads((out / "rewards.json").read_text())
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.05
    assert metrics["largest_gap"] < 1e-4


def test_a_request_to_stop_saves(work: Work, model: Path, talks: Path) -> None:
    whole, _ = reinforce(work, model, talks, name="whole")
    with pytest.raises(Stopped):
        reinforce(work, model, talks, name="cut", control=Still(stop_after=3))
    out, _ = reinforce(work, model, talks, name="cut")
    assert weights(out) == weights(whole)


def test_equal_rewards_teach_nothing(work: Work, model: Path, talks: Path) -> None:
    out, _ = reinforce(work, model, talks, rewards=[{"kind": "format", "pattern": ".*"}])
    assert weights(out) == weights(model)
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert {(row["rl/flat_groups"], row["rl/idle"]) for row in rows} == {(1.0, 1.0)}


def test_a_critic_learns_from_equal_rewards_too(work: Work, model: Path, talks: Path) -> None:
    how = {**HOW, "checkpoint_every": 100}
    policy = {"algorithm": "ppo", "lam": 1.0}
    rewards = [{"kind": "format", "pattern": ".*"}]
    train = {"steps": 4, "lr": 1e-2}
    out, _ = reinforce(work, model, talks, rewards=rewards, policy=policy, train=train, how=how)
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert rows[0]["rl/idle"] == 1.0
    assert rows[-1]["rl/value_error"] < rows[0]["rl/value_error"]


def test_more_updates_than_answers_are_refused(work: Work, model: Path, talks: Path) -> None:
    with pytest.raises(ValueError, match="12 answers cannot be cut into 13 updates"):
        reinforce(work, model, talks, policy={"updates": 13})


def test_no_reward_is_read_beyond_a_models_context(model: Path) -> None:
    from shunter.post.reward_model import Learnt, new_head
    from shunter.post.rewards import Item

    decoder = load_model(model)
    rule = Learnt(decoder, new_head(decoder.spec.dim), torch.device("cpu"))
    unknown = decoder.spec.vocab_size
    found = rule.grade([Item("", "", "", ids=ids) for ids in ([1] * 48, [1] * 49, [unknown])])
    assert found[0] == 0.0
    assert "longer than the reward model's context of 48" in str(found[1])
    assert "does not know" in str(found[2])


def test_a_reward_model_whose_weights_change_in_the_midst_of_a_run_ends_it(model: Path) -> None:
    from shunter.post.reward_model import Learnt, new_head
    from shunter.post.rewards import Grader, Item

    decoder = load_model(model)
    head = new_head(decoder.spec.dim)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    rule = Learnt(decoder, head, torch.device("cpu"))
    grader = Grader([(rule, 1.0)])
    items = [Item("q", "a", "t", ids=[3] * n) for n in (4, 9)]
    plain = rule.grade(items)
    for _ in range(2):
        assert [one.total for one in grader.grade(items)] == plain, "the same bits as without canaries"
    with torch.no_grad():
        decoder.embed.weight.mul_(1.01)
    with pytest.raises(ShunterError, match="whose score is known to be"):
        grader.grade(items)


def test_a_reward_is_learnt_at_the_token_that_ends_an_answer() -> None:
    from shunter.post.batch import Sample
    from shunter.post.prompts import _closed

    after = Sample([5, 6, 7, 8, 9], [False, False, True, True, False])  # 9: a line break of the template
    assert _closed(after) == Sample([5, 6, 7, 8, 0], [False, False, True, True, False])


def test_another_policy_than_the_generators_stops_the_run(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shunter.generate import rollout

    pick = rollout.pick

    def off(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def picked(*args: Any) -> Any:
            tokens, logprobs, best = pick(*args)
            return tokens, change(logprobs), best

        return picked

    monkeypatch.setattr(rollout, "pick", off(lambda logprobs: logprobs + 0.1))
    with pytest.raises(ShunterError, match="trainer and generator differ by"):
        reinforce(work, model, talks)
    monkeypatch.setattr(rollout, "pick", off(lambda logprobs: logprobs * float("nan")))
    with pytest.raises(ShunterError, match="is not a number"):
        reinforce(work, model, talks, name="broken")


@pytest.mark.parametrize("placement", [None, {"backend": "inline"}], ids=["plain", "placed"])
def test_a_generator_that_is_one_update_behind_stops_the_run(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch, placement: Any
) -> None:
    """Weights that were not handed on, under the newest version's name: by log-probabilities, and in time."""
    from shunter.generate.rollout import RolloutEngine

    class Behind(RolloutEngine):
        """Writes with the weights that it saw when the last text but one of its kind was written."""

        seen: ClassVar[list[dict[str, torch.Tensor]]] = []

        def step(self) -> None:
            now = {name: value.clone() for name, value in self.model.state_dict().items()}
            if not self.seen or any(not value.equal(self.seen[-1][name]) for name, value in now.items()):
                self.seen.append(now)
            self.model.load_state_dict(self.seen[max(0, len(self.seen) - 2)])
            super().step()
            self.model.load_state_dict(now)

    Behind.seen.clear()
    for module in ("reinforce", "roles.writes"):
        monkeypatch.setattr(f"shunter.post.{module}.RolloutEngine", Behind)
    how = {**HOW, "placement": placement, "log_every": 1}
    with pytest.raises(ShunterError, match="trainer and generator differ by") as caught:
        reinforce(work, model, talks, train={"steps": 3, "lr": 1e-4}, how=how)
    assert len(Behind.seen) == 2, f"in the second step ({caught.value})"


def test_answers_of_another_version_than_the_newest_stop_the_run(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shunter.generate.rollout import RolloutEngine

    new = RolloutEngine.new_weights
    monkeypatch.setattr(
        RolloutEngine, "new_weights", lambda self, version: new(self, 0 if version == 2 else version)
    )
    with pytest.raises(ShunterError, match="2 updates old"):
        reinforce(work, model, talks, max_gap=9.0)


@pytest.mark.parametrize(("first", "then"), [(None, {"backend": "inline"}), ({"backend": "inline"}, None)])
def test_a_training_does_not_begin_anew_where_its_roles_are_placed_otherwise(
    work: Work, model: Path, talks: Path, first: Any, then: Any
) -> None:
    with pytest.raises(Stopped):
        reinforce(work, model, talks, how={**HOW, "placement": first}, control=Still(stop_after=3))
    with pytest.raises(ShunterError, match="checkpoints are of another form"):
        reinforce(work, model, talks, how={**HOW, "placement": then})


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"max_new_tokens": 48}, "fill the context"),
        ({"max_new_tokens": 42}, "is longer than the 6 tokens"),
        ({"task": "poems"}, "There are the tasks sums"),
        ({"rewards": [{"kind": "model"}]}, "belong together"),
        ({"rewards": [{"kind": "number"}, {"kind": "number"}]}, "two rewards are called number"),
        ({"rewards": [{"kind": "constraints"}]}, "no JSON object of constraints"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    work: Work, model: Path, talks: Path, more: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ShunterError, match=complaint):
        reinforce(work, model, talks, **more)


def test_a_tokenizer_without_a_template_is_refused(
    work: Work, model: Path, talks: Path, tmp_path: Path
) -> None:
    import shutil

    bare = tmp_path / "bare" / "out"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": None}))
    with pytest.raises(ShunterError, match="no chat template"):
        reinforce(work, bare, talks)


@pytest.mark.parametrize("loss", ["dpo", "dpo_norm", "simpo"])
def test_dpo_prefers_the_better_answer(work: Work, model: Path, pairs: Path, loss: str) -> None:
    config = {
        "model": "m", "pairs": "p", "loss": loss, "batch_pairs": 5, "validate_every": 3,
        "train": {"steps": 12, "lr": 3e-3}, "how": HOW,
    }  # fmt: skip
    out, metrics = work(dpo.JOB, config, inputs={"model": model, "pairs": pairs})
    assert metrics["heldout_accuracy"] == 1.0
    assert metrics["heldout_margin"] > 0
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert [row["step"] for row in rows if "heldout/accuracy" in row] == [3, 6, 9, 12]
    account = metrics["account"]
    assert account["step_seconds"] == pytest.approx(np.median([r["train/step_seconds"] for r in rows[1:]]))
    assert account["plan_step_seconds"] > 0
    assert account["plan_memory_bytes"] > 16 * metrics["parameters"]  # weights, gradients, two moments
    assert ("reference_seconds" in account) == (loss != "simpo")
    if loss != "simpo":
        assert account["plan_reference_seconds"] > 0
        assert rows[0]["pairs/loss"] == pytest.approx(np.log(2), rel=1e-4), "policy and reference are one"
    assert load_model(out).spec == load_model(model).spec


def test_dpo_keeps_its_reference_over_a_stop(work: Work, model: Path, pairs: Path) -> None:
    config = {
        "model": "m", "pairs": "p", "batch_pairs": 5, "train": {"steps": 6, "lr": 3e-3}, "how": HOW,
    }  # fmt: skip
    inputs = {"model": model, "pairs": pairs}
    whole, _ = work(dpo.JOB, config, inputs=inputs, name="whole")
    with pytest.raises(Stopped):
        work(dpo.JOB, config, inputs=inputs, name="cut", control=Still(stop_after=3))
    out, _ = work(dpo.JOB, config, inputs=inputs, name="cut")
    assert weights(out) == weights(whole)


def test_cached_reference_log_probabilities_are_those_recomputed(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    from shunter.post.preferences import of_each, with_reference
    from shunter.post.prompts import read_pairs
    from shunter.post.step import Scorer

    read = read_pairs(pairs / "train.jsonl", Tokenizer.load(model), 48)
    units = [(pair.chosen, pair.rejected) for pair in read.items]
    scorer = Scorer(load_model(model), torch.device("cpu"))
    path = tmp_path / "reference.safetensors"
    first = with_reference(units, scorer, path, 64)
    with torch.no_grad():
        scorer.decoder.embed.weight.mul_(2)
    again = with_reference(units, scorer, path, 4096)
    fresh = of_each(Scorer(load_model(model), torch.device("cpu")), [s for u in units for s in u], 4096)
    for a, b, c in zip([s for u in first for s in u], [s for u in again for s in u], fresh, strict=True):
        np.testing.assert_array_equal(a.known["reference"], b.known["reference"])
        np.testing.assert_allclose(a.known["reference"], c, rtol=1e-5)
    with pytest.raises(ShunterError, match="are of other pairs"):
        with_reference(units[1:], scorer, path, 64)


def test_a_reward_model_rewards(work: Work, model: Path, pairs: Path, talks: Path) -> None:
    config = {
        "model": "m", "pairs": "p", "batch_pairs": 5, "train": {"steps": 12, "lr": 3e-3}, "how": HOW,
    }  # fmt: skip
    out, metrics = work(reward_model.JOB, config, inputs={"model": model, "pairs": pairs})
    assert metrics["heldout_accuracy"] == 1.0
    assert metrics["account"]["mean_step"]["scored"] == 0.0  # the head is not asked for words
    from shunter.post.prompts import answered
    from shunter.post.reward_model import Learnt
    from shunter.post.rewards import Item

    tokenizer = Tokenizer.load(model)
    messages = [{"role": "user", "content": "What is 11 plus 1?"}]
    items = [
        Item("", text, "", ids=answered(tokenizer, messages, tokenizer.encode_prompt(messages), text).ids)
        for text in ("plus", "11 11 11", "plus")
    ]
    learnt = Learnt.load(out, torch.device("cpu"))
    scores = learnt.grade(items)
    assert scores[0] > scores[1]  # type: ignore[operator]
    assert scores[0] == pytest.approx(learnt.grade(items[:1])[0], rel=1e-5), "neighbours change nothing"
    _, told = reinforce(
        work, model, talks, rewards=[{"kind": "model", "weight": 0.5}], reward_model=out, train={"steps": 2}
    )
    assert np.isfinite(told["reward_last"])


def test_pairs_are_made_by_judging_answers(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shunter.jobs import models

    # A random model seldom ends: here many tokens end an answer.
    monkeypatch.setattr(models, "special", lambda folder: {"eos_token_id": list(range(100, 200))})
    sampled = {
        "models": ["a", "b"], "prompts": "t", "rewards": [{"kind": "format", "pattern": ".*[a-m].*"}],
        "per_prompt": 4, "max_new_tokens": 5,
    }  # fmt: skip
    inputs = {"sampled.models": [model, model], "sampled.prompts": talks}
    out, metrics = work(preferences.JOB, {"sampled": sampled}, inputs=inputs)
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert metrics["train"] == len(lines) > 0
    kept = metrics["train"] + metrics["heldout"]
    assert kept + metrics["ties"] + metrics["unfinished"] == 16
    for line in lines:
        assert line["scores"] == [1.0, 0.0]
        assert line["messages"][-1]["role"] == "user"


def test_who_is_chosen() -> None:
    """Never one that was cut off; among equals not always the first model's."""
    from shunter.post.rewards import Item

    def judged(*each: tuple[float, bool], name: str = "n") -> dict[str, Any] | str:
        answers = [(str(i), Item("q", str(i), "", finished=ended)) for i, (_, ended) in enumerate(each)]
        return preferences._judged(name, answers, [score for score, _ in each], 0)

    assert judged((1.0, False), (0.0, True)) == "unfinished"
    assert judged((1.0, False), (0.0, False)) == "unfinished"
    assert judged((1.0, True), (1.0, False)) == "ties"
    found = judged((2.0, False), (1.0, True), (0.0, False))
    assert isinstance(found, dict)
    assert (found["chosen"], found["rejected"]) == ("1", "2")
    firsts = {str(judged((1.0, True), (1.0, True), (0.0, True), name=str(n))) for n in range(20)}
    assert len(firsts) == 2


FORMS = [
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "b"),
    ({"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}, "b"),
    (
        {
            "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
        },
        "b",
    ),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, None),
    ({"chosen": "b", "rejected": "c"}, None),
    ({"prompt": "a", "completion": "b"}, None),
]


@pytest.mark.parametrize(("fields", "chosen"), FORMS)
def test_forms_of_pairs(fields: dict[str, Any], chosen: str | None) -> None:
    if chosen is None:
        with pytest.raises(ShunterError):
            preferences.recognise(fields)
        return
    messages, better, worse = preferences.recognise(fields)
    assert ([m["content"] for m in messages], better, worse) == (["a"], chosen, "c")
