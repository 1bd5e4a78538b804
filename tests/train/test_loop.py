"""The loop: interrupted anywhere it ends with the same weights; what it skips it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.recipe.job import Stopped
from shunter.record import events, points
from shunter.train.loop import Training
from shunter.train.passes import OnePass
from tests.jobs.conftest import Still
from tests.train import corpora


class Killed(BaseException):
    """Stands for SIGKILL inside one process: no handler of the product catches it."""


Hook = Callable[[str, dict[str, Any]], str | None]


@pytest.fixture
def hook() -> Iterator[Callable[[Hook | None], None]]:
    yield points.install
    points.install(None)


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in training.decoder.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=["muon", "adamw"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    training = corpora.training(tmp_path_factory.mktemp("whole"), {"optimizer": request.param})
    training.run()
    return request.param, weights(training), ledger(training)


def ledger(training: Training) -> list[dict[str, Any]]:
    """The last record of each step: a later attempt repeats the steps since its checkpoint."""
    steps = {e["step"]: e for e in events.read(training.place.log / "ledger.jsonl") if e["event"] == "step"}
    return [{k: v for k, v in steps[step].items() if k not in ("t", "attempt")} for step in sorted(steps)]


@pytest.mark.parametrize("at", [1, 4, 7, 11])
def test_killed_at_any_step_the_weights_are_equal(
    uninterrupted: Any, at: int, tmp_path: Path, hook: Callable[[Hook | None], None]
) -> None:
    optimizer, expected, steps = uninterrupted

    def kill(point: str, facts: dict[str, Any]) -> None:
        if point == "train.update" and facts["step"] == at:
            raise Killed

    hook(kill)
    with pytest.raises(Killed):
        corpora.training(tmp_path, {"optimizer": optimizer}).run()
    hook(None)
    again = corpora.training(
        tmp_path, {"optimizer": optimizer}, model=corpora.decoder(seed=5 if at >= 4 else 0)
    )
    again.run()
    assert same(weights(again), expected)
    assert ledger(again) == steps, "losses or rows differ from the uninterrupted run"
    positions = [record["position"] for record in ledger(again)]
    assert [a for a, _ in positions] == [0, *(b for _, b in positions[:-1])], "a position is lost or twice"


def test_killed_inside_an_accumulation(
    uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, _, _ = uninterrupted
    how = {"micro_batch": 1}
    whole = corpora.training(tmp_path / "whole", {"optimizer": optimizer}, how)
    whole.run()
    calls, real = [0], OnePass._forward

    def dies(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 4 * 6 + 3:  # the third of four micro-batches of the seventh step
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(OnePass, "_forward", dies)
    with pytest.raises(Killed):
        corpora.training(tmp_path / "killed", {"optimizer": optimizer}, how).run()
    monkeypatch.undo()
    again = corpora.training(tmp_path / "killed", {"optimizer": optimizer}, how)
    again.run()
    assert same(weights(again), weights(whole))


def test_a_resume_with_other_micro_batches_reads_the_same_rows(uninterrupted: Any, tmp_path: Path) -> None:
    optimizer, expected, steps = uninterrupted
    with pytest.raises(Stopped):
        corpora.training(tmp_path, {"optimizer": optimizer}, control=Still(stop_after=5)).run()
    again = corpora.training(tmp_path, {"optimizer": optimizer}, {"micro_batch": 3, "checkpoint_every": 5})
    again.run()
    for record, other in zip(ledger(again), steps, strict=True):
        assert (record["position"], record["rows"]) == (other["position"], other["rows"])
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for name, weight in weights(again).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-4)


def test_a_lost_optimizer_state_would_be_seen(uninterrupted: Any, tmp_path: Path) -> None:
    """The equality above is not vacuous: without the optimizer's state the weights differ."""
    optimizer, expected, _ = uninterrupted
    training = corpora.training(
        tmp_path, {"optimizer": optimizer, "restart": {"at": 6, "restore": "no-optimizer"}}
    )
    training.run()
    assert not same(weights(training), expected)


@pytest.mark.parametrize(
    "restore",
    ["full", "no-optimizer", "no-schedule", "no-data", "no-rng", "weights-only", "other-seed"],
)
def test_restore_modes(uninterrupted: Any, restore: str, tmp_path: Path) -> None:
    """Each loses what its name says, and no other part."""
    optimizer, expected, steps = uninterrupted
    noise = 0.2 if restore == "no-rng" else 0.0  # what is drawn within steps
    if noise:
        whole = corpora.training(tmp_path / "whole", {"optimizer": optimizer, "input_noise": noise})
        whole.run()
        expected, steps = weights(whole), ledger(whole)
    config = {"optimizer": optimizer, "input_noise": noise, "restart": {"at": 6, "restore": restore}}
    training = corpora.training(tmp_path, config)
    training.run()
    assert same(weights(training), expected) == (restore == "full")
    found = ledger(training)
    assert found[:6] == steps[:6]
    rows = [record["rows"] for record in found] == [record["rows"] for record in steps]
    assert rows == (restore in ("full", "no-optimizer", "no-schedule", "no-rng"))
    begins = [record["position"][0] for record in found]
    assert begins[6] == (0 if restore in ("no-data", "weights-only") else 24)


def test_noise_in_the_input_survives_a_kill_and_another_micro_batch(
    tmp_path: Path, hook: Callable[[Hook | None], None]
) -> None:
    """The losses are those of the same draws: other ones are far outside of rounding."""
    config = {"input_noise": 0.2}
    whole = corpora.training(tmp_path / "whole", config)
    whole.run()

    def kill(point: str, facts: dict[str, Any]) -> None:
        if point == "train.update" and facts["step"] == 6:
            raise Killed

    hook(kill)
    with pytest.raises(Killed):
        corpora.training(tmp_path / "killed", config).run()
    hook(None)
    again = corpora.training(tmp_path / "killed", config)
    again.run()
    assert same(weights(again), weights(whole))
    cut = corpora.training(tmp_path / "cut", config, {"micro_batch": 3})
    cut.run()
    plain = corpora.training(tmp_path / "plain", {})
    plain.run()
    for record, other, without in zip(ledger(whole), ledger(cut), ledger(plain), strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert abs(record["loss"] - without["loss"]) > 1e-3


def test_a_restart_with_another_micro_batch_is_rounding(tmp_path: Path) -> None:
    whole = corpora.training(tmp_path / "whole", {})
    whole.run()
    config = {"restart": {"at": 6, "restore": "full", "micro_batch": 3}}
    cut = corpora.training(tmp_path / "cut", config)
    cut.run()
    losses = [[record["loss"] for record in ledger(one)] for one in (whole, cut)]
    assert losses[0][:6] == losses[1][:6]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_lossy_restart_is_not_healed_by_a_kill(tmp_path: Path, hook: Callable[[Hook | None], None]) -> None:
    config = {"restart": {"at": 6, "restore": "no-optimizer", "rewarm": 3}}
    whole = corpora.training(tmp_path / "whole", config)
    whole.run()

    def kill(point: str, facts: dict[str, Any]) -> None:
        if point == "train.update" and facts["step"] == 7:
            raise Killed

    hook(kill)
    with pytest.raises(Killed):
        corpora.training(tmp_path / "killed", config).run()
    hook(None)
    again = corpora.training(tmp_path / "killed", config)
    again.run()
    assert same(weights(again), weights(whole))


def test_steps_that_are_not_finite_are_skipped_and_told(
    tmp_path: Path, hook: Callable[[Hook | None], None]
) -> None:
    hook(lambda point, facts: "nan" if point == "train.step" and facts["step"] in (3, 8) else None)
    training = corpora.training(tmp_path, {})
    metrics = training.run()
    assert metrics["skipped"] == 2
    told = [e for e in events.read(tmp_path / "log" / "events.jsonl") if e["event"] == "skip"]
    assert [e["step"] for e in told] == [3, 8]
    assert told[0]["documents"]
    assert all(len(e["rows"]) == 4 for e in told)
    json.dumps(training.session.extra(), allow_nan=False)


def test_too_many_skips_stop_the_run_with_the_documents(
    tmp_path: Path, hook: Callable[[Hook | None], None]
) -> None:
    hook(lambda point, facts: "nan" if point == "train.step" else None)
    with pytest.raises(ShunterError, match=r"not finite in 3 steps, last in step 2 \(row \d+: d:\d+"):
        corpora.training(tmp_path, {"max_skipped": 2}).run()


def test_metrics_validation_and_summary(tmp_path: Path) -> None:
    heldout = corpora.rows(tmp_path / "heldout", documents=12, seed=9)
    calls: list[tuple[int, int]] = []

    def milestone(step: int, tokens: int) -> dict[str, float]:
        calls.append((step, tokens))
        return {"samples/distinct_2": 0.5}

    training = corpora.training(
        tmp_path, {"validate_every": 6, "steps": 12}, heldout=heldout, milestone=milestone
    )
    metrics = training.run()
    rows = {row["step"]: row for row in events.read_metrics(tmp_path / "log" / "events.jsonl")}
    assert [step for step in rows if "train/loss" in rows[step]] == [2, 4, 6, 8, 10, 12]
    assert [step for step in rows if "valid/loss" in rows[step]] == [6, 12] == [step for step, _ in calls]
    assert rows[12]["samples/distinct_2"] == 0.5
    assert calls[-1][1] == metrics["tokens"] == rows[12]["train/tokens"]
    assert metrics["heldout_loss"] == rows[12]["valid/loss"]
    assert rows[12]["train/loss"] < rows[2]["train/loss"], "it does not learn"
    assert training.session.best == min(rows[6]["valid/loss"], rows[12]["valid/loss"])


def test_a_save_request_is_heeded(tmp_path: Path) -> None:
    class Asks(Still):
        def take_save_request(self) -> bool:
            self.count = getattr(self, "count", 0) + 1
            return self.count == 3

    training = corpora.training(tmp_path, {}, {"checkpoint_every": 100, "keep": 5}, control=Asks())
    training.run()
    assert training.checkpointer.steps() == [2, 12]


def test_a_changed_corpus_is_refused_on_resume(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        corpora.training(tmp_path, {}, control=Still(stop_after=5)).run()
    other = corpora.rows(tmp_path / "other", seed=3)
    with pytest.raises(ShunterError, match="the corpus is not the one"):
        corpora.training(tmp_path, {}, rows=other).run()


def test_another_machine_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped):
        corpora.training(tmp_path, {}, control=Still(stop_after=5)).run()
    monkeypatch.setattr("shunter.train.loop._name", lambda device: "another device")
    corpora.training(tmp_path, {}).run()
    told = {e["event"]: e for e in events.read(tmp_path / "log" / "events.jsonl")}
    assert told["hardware"]["changed"]["device"] == ["cpu", "another device"]
    assert told["resume"]["step"] == 5
