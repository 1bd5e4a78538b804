"""Ranks measure what a small model takes, together, and all have the same answer.

What this cannot show: that the seconds are right; `shunter reproduce galvatron` holds them to real steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import Groups
from shunter.plan.profile import FORMAT, VERSION, Profile
from shunter.train import profiler
from shunter.train.profiling import Effort, cut, measure_model
from tests.parallel.pool import GROUPS, Pool
from tests.train.checkpoint.saving import EXPERTS, SPEC

TINY = DecoderSpec(**{**SPEC, "experts": None})
LEAST = Effort(budget=0.0, repeats=2, most=1e-3)  # a second size of messages is too long already


def measured(rank: int, groups: Groups, _: None) -> dict[str, Any]:
    said: list[str] = []
    found = measure_model(TINY, 8, [1, 2], "fp32", "muon", torch.device("cpu"), LEAST, said.append, GROUPS)
    assert any("tensor rank" in line for line in said)
    return found


def test_all_ranks_have_the_same_answer_and_it_is_a_profile(pool: Pool) -> None:
    answers = pool.run(measured, 4)
    rest = {name: answers[0][name] for name in ("layer", "embedding", "head", "messages")}
    assert all({name: each[name] for name in rest} == rest for each in answers)
    data = {
        "format": FORMAT, "version": VERSION, "spec": TINY.model_dump(mode="json"), "row": 8,
        "products": "fp32", "ranks": 4, **answers[0],
    }  # fmt: skip
    found = Profile.of(data)
    degrees = [n for n in (1, 2, 4) if TINY.num_heads % n == 0]
    assert list(found.layer) == list(found.head) == degrees
    assert {kind: set(curves) for kind, curves in found.messages.items()} == {
        "gather": {2, 4}, "scatter": {2, 4}, "sum": {2, 4}, "hop": {2},
    }  # fmt: skip
    for part in found.layer.values():
        assert min(part.forward.seconds + part.backward.seconds) > 0


def test_a_tensor_rank_s_part_of_a_layer_is_its_share() -> None:
    half = cut(TINY, 2)
    assert half.dim == TINY.dim
    assert half.num_heads * 2 == TINY.num_heads
    assert half.ffn_dim == -(-TINY.ffn_dim // 2)
    assert half.head_dim == TINY.head_dim


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = {"sizes": [1.0, 2.0], "seconds": [1e-3, 2e-3]}
    both = {1: {"forward": line, "backward": line}}
    answer = {"layer": both, "embedding": both, "head": both, "messages": {}, "update": line}
    made: list[dict[str, Any]] = []

    def launch(module: str, request: dict[str, Any], count: int, *_: Any, **__: Any) -> dict[str, Any]:
        made.append(request)
        return answer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(profiler.elastic, "launch", launch)
    first, path = profiler.profile(TINY, 8, 6, ranks=1)
    assert made[0]["rows"] == [1, 2, 4, 6]
    again, same = profiler.profile(TINY, 8, 6, ranks=1)
    assert (again, same, len(made)) == (first, path, 1)
    for change in ({"precision": "bf16"}, {"optimizer": "muon"}, {"threads": 3}, {"again": True}):
        profiler.profile(TINY, 8, 6, ranks=1, **change)  # type: ignore[arg-type]
    profiler.profile(TINY, 16, 6, ranks=1)
    assert len(made) == 6


def test_experts_are_refused() -> None:
    with pytest.raises(ShunterError, match="where tokens go"):
        profiler.profile(DecoderSpec(**{**SPEC, "experts": EXPERTS}), 8, 4)
