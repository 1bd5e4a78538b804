"""`rl` with its roles placed: what it learns is what it learns without, wherever the roles are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shunter.config.errors import MissingExtra, ShunterError
from shunter.jobs import rl
from shunter.launch import ray_cluster
from shunter.models.hf import load_model
from shunter.post import gathering
from shunter.recipe.job import Stopped
from shunter.record import events
from tests.jobs.conftest import Still, Work
from tests.post.roles.small import model_in, talks_in

INLINE = {"backend": "inline"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_in(tmp_path_factory.mktemp("base"))


def reinforce(work: Work, model: Path, name: str, placement: Any, **more: Any) -> tuple[Path, dict[str, Any]]:
    talks = talks_in(model.parent / "talks" / "out").parent
    control = more.pop("control", None)
    how = {
        "threads": 1, "log_every": 1, "checkpoint_every": 2, "micro_tokens": 256, "track": [],
        "deterministic": True, **({} if placement is None else {"placement": placement}),
        **more.pop("how", {}),
    }  # fmt: skip
    config = {
        "model": "m", "prompts": "t", "rewards": [{"kind": "format", "pattern": ".*[a-m].*"}], "group": 4,
        "prompts_per_step": 3, "max_new_tokens": 5, "temperature": 0.9, "policy": {"kl": 0.02},
        "train": {"steps": 4, "lr": 2e-3}, "how": how, **more,
    }  # fmt: skip
    return work(rl.JOB, config, inputs={"model": model, "prompts": talks}, name=name, control=control)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def rewards(folder: Path) -> list[float]:
    found: list[float] = json.loads((folder / "rewards.json").read_text())
    return found


@pytest.mark.parametrize(
    "policy", [{"kl": 0.02, "updates": 2}, {"algorithm": "ppo", "epochs": 2, "kl": 0.01}], ids=str
)
def test_placed_is_as_without_a_placement(
    work: Work, model: Path, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers and rewards; weights within rounding, since other answers are computed together. And
    people are told the same."""
    monkeypatch.setattr(gathering, "WATCHED", 3)
    monkeypatch.setattr(gathering, "MOST", 0.0)
    plain, _ = reinforce(work, model, "plain", None, policy=policy)
    placed, metrics = reinforce(work, model, "placed", INLINE, policy=policy)
    assert rewards(placed) == rewards(plain)
    a, b = (load_model(folder).state_dict() for folder in (plain, placed))
    assert all(np.allclose(a[name], b[name], atol=1e-5) for name in a)
    samples = [
        [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        for folder in (plain, placed)
    ]
    for mine, theirs in zip(*samples, strict=True):
        assert {**mine, "model": ""} == {**theirs, "model": ""}
    rows = events.read_metrics(placed.parent / "log" / "events.jsonl")
    said = [
        [row["problem"] for row in events.read(folder.parent / "log" / "events.jsonl") if "problem" in row]
        for folder in (plain, placed)
    ]
    assert said[0] == said[1]
    assert len(said[0]) == int("algorithm" not in policy)  # a critic learns from equal rewards too
    needed = {"rl/kl", "rl/gap", "rl/largest_gap", "rl/length", "rl/flat_groups", "train/grad_norm"}
    assert needed <= rows[-1].keys()
    assert 0 < metrics["largest_gap"] < 1e-4


def test_on_processes_stopped_and_continued_it_is_the_same_bits(work: Work, model: Path) -> None:
    whole, _ = reinforce(work, model, "whole", INLINE)
    with pytest.raises(Stopped):
        reinforce(work, model, "cut", INLINE, control=Still(stop_after=3))
    # It goes on elsewhere: where roles are is no part of what is learnt.
    out, metrics = reinforce(work, model, "cut", {"arrangement": "colocate", "processes": 2})
    assert weights(out) == weights(whole)
    assert rewards(out) == rewards(whole)
    assert min(metrics["moved_bytes"], metrics["control_bytes"]) > 0


def test_what_cannot_be_placed_is_refused(work: Work, model: Path) -> None:
    for placement, complaint in (
        ({"arrangement": "standalone", "processes": 2}, "standalone needs 3 processes"),
        ({"pools": [{"roles": ["actor"]}]}, "no pool has the roles reference, reward"),
        ({"pools": [{"roles": ["actor", "reference"]}, {"roles": ["reward", "critic"]}]}, "no role 'critic'"),
    ):
        with pytest.raises(ShunterError, match=complaint):
            reinforce(work, model, "no", placement)
    split = {"arrangement": "split", "processes": 3}
    with pytest.raises(ShunterError, match="deterministic does not allow"):
        reinforce(work, model, "no", {**split, "parts": 2})
    with pytest.raises(ShunterError, match="2 processes are no copies of 3 parts"):
        reinforce(work, model, "no", {**split, "parts": 3}, how={"deterministic": False})
    with pytest.raises(ShunterError, match="compute on the CPU so far"):
        reinforce(work, model, "no", INLINE, how={"device": "cuda"})


def test_without_ray_a_cluster_is_refused(work: Work, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(MissingExtra, match=r"a Ray cluster needs the package 'ray'.*shunter\[ray\]"):
        reinforce(work, model, "no", {"backend": "ray"})
    with pytest.raises(ValueError, match="set backend: ray"):
        reinforce(work, model, "no", {"address": "auto"})


@pytest.mark.long
def test_on_a_ray_cluster_made_for_it_stopped_and_continued_it_is_the_same_bits(
    work: Work, model: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'shunter[ray]'")
    whole, _ = reinforce(work, model, "whole", INLINE)
    ray = {"arrangement": "split", "processes": 3, "backend": "ray"}
    with pytest.raises(Stopped):
        reinforce(work, model, "cut", ray, control=Still(stop_after=3))
    out, metrics = reinforce(work, model, "cut", ray)
    assert weights(out) == weights(whole)
    assert rewards(out) == rewards(whole)
    assert min(metrics["moved_bytes"], metrics["control_bytes"]) > 0


@pytest.mark.long
def test_an_actor_in_parts_learns_the_same_but_for_rounding(work: Work, model: Path) -> None:
    plain, _ = reinforce(work, model, "plain", None)
    how = {"deterministic": False}
    cut = {"arrangement": "colocate", "processes": 2, "parts": 2}
    with pytest.raises(Stopped):
        reinforce(work, model, "cut", cut, how=how, control=Still(stop_after=3))
    with pytest.raises(ShunterError, match="kept in 2 parts and is to go on in 1"):
        reinforce(work, model, "cut", INLINE, how=how)
    out, _ = reinforce(work, model, "cut", cut, how=how)
    assert rewards(out) == rewards(plain)
    a, b = (load_model(folder).state_dict() for folder in (plain, out))
    # Adam makes whole steps of gradients that are rounding alone: a few weights move otherwise.
    gaps = np.concatenate([(a[name] - b[name]).abs().flatten().numpy() for name in a])
    assert np.quantile(gaps, 0.999) < 1e-5
    assert gaps.max() < 1e-3


def test_the_cost_model_chooses_a_placement(model: Path) -> None:
    from shunter.jobs import placed
    from shunter.models.hf import read_spec

    config = rl.RlConfig(
        kind="rl", model="m", prompts="t", rewards=[{"kind": "number"}],  # type: ignore[list-item]
        policy={"algorithm": "ppo"}, train={"steps": 1},  # type: ignore[arg-type]
    )  # fmt: skip
    roles = ["prompts", "actor", "reference", "reward", "judge", "critic"]
    found = placed.mapped(config, read_spec(model), roles, 4)
    assert sum(found.pools.values()) == 4
    assert found.where.keys() == set(roles)
