"""What `rl` holds in memory: the first model where it is asked about, and a cache of a size that is given.

What this cannot show: bytes; models that are read are counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from shunter.generate.rollout import RolloutEngine
from shunter.jobs import rl
from shunter.models import hf
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks, weights

__all__ = ["model", "talks"]  # fixtures

TRAIN = {"steps": 2, "lr": 1e-3}


@pytest.mark.parametrize(
    ("more", "models", "shown"),
    [
        ({}, 1, False),
        ({"policy": {"kl": 0.05}}, 2, True),
        ({"how": {"divergence": True}}, 2, True),
        ({"adapter": {"rank": 2}}, 1, True),
    ],
    ids=["plain", "kl", "divergence", "adapter"],
)
def test_the_first_model_is_read_where_it_is_asked_about_alone(
    work: Work,
    model: Path,
    talks: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    models: int,
    shown: bool,
) -> None:
    read: list[Path] = []
    load = hf.load_model
    monkeypatch.setattr(hf, "load_model", lambda *a, **k: read.append(a[0]) or load(*a, **k))
    more = {**more, "how": {**HOW, **more.get("how", {})}}
    out, _ = reinforce(work, model, talks, train=TRAIN, **more)
    assert read == [model] * models
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert {"rl/kl" in row for row in rows} == {shown}


def test_what_is_shown_changes_nothing(work: Work, model: Path, talks: Path) -> None:
    plain, shown = (
        reinforce(work, model, talks, name, train=TRAIN, how={**HOW, "divergence": name == "shown"})[0]
        for name in ("plain", "shown")
    )
    assert weights(plain) == weights(shown)


def test_placed_roles_have_no_reference_that_nobody_asks(work: Work, model: Path, talks: Path) -> None:
    found = {}
    for name, more in (("plain", {}), ("shown", {"divergence": True})):
        how = {**HOW, "placement": {"backend": "inline"}, **more}
        out, _ = reinforce(work, model, talks, name, train=TRAIN, how=how)
        rows = events.read_metrics(out.parent / "log" / "events.jsonl")
        told = [
            e["where"] for e in events.read(out.parent / "log" / "events.jsonl") if e["event"] == "placement"
        ]
        found[name] = ["rl/kl" in row for row in rows], "reference" in told[0], weights(out)
    assert found["plain"][:2] == ([False] * 2, False)
    assert found["shown"][:2] == ([True] * 2, True)
    assert found["plain"][2] == found["shown"][2]


def test_a_cache_that_is_too_small_for_all_writes_the_same(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are the same, and what is learnt to rounding: fewer stand side by side, some are read anew."""
    events_seen: list[str] = []
    step = RolloutEngine.step

    def noted(self: RolloutEngine) -> None:
        step(self)
        events_seen.extend(event for _, event, _ in self.trace)

    plain, _ = reinforce(work, model, talks, "plain", train=TRAIN, max_new_tokens=12)
    monkeypatch.setattr(RolloutEngine, "step", noted)
    how = {**HOW, "block": 3, "cache": 60}
    out, _ = reinforce(work, model, talks, "small", train=TRAIN, how=how, max_new_tokens=12)
    assert {"preempt", "resume"} <= set(events_seen)
    assert json.loads((out / "rewards.json").read_text()) == json.loads((plain / "rewards.json").read_text())
    for name, tensor in load_file(plain / "model.safetensors").items():
        assert np.allclose(load_file(out / "model.safetensors")[name], tensor, rtol=1e-3, atol=2e-4), name


def test_a_cache_beside_roles_is_refused() -> None:
    base = {"kind": "rl", "model": "m", "prompts": "t", "rewards": [{"kind": "number"}]}
    how = {"cache": 64, "placement": {"backend": "inline"}}
    with pytest.raises(ValueError, match="are of our own writer"):
        rl.RlConfig.model_validate({**base, "train": {"steps": 1}, "how": how})
