"""The account of `rl` counts what the engine and learning really hold: bytes of tensors, in float32 on a CPU.

Tensors are counted exactly, so bounds are those of the cost model. What this cannot show: what an allocator
keeps besides, and a GPU. `python -m bench.rl_memory` measures whole processes.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import rl_memory as bench
from shunter.cluster import files
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import RolloutEngine
from shunter.jobs import rl_memory
from shunter.jobs.foretold import predicted
from shunter.jobs.pairs_account import mean_step
from shunter.jobs.rl_account import _widest
from shunter.models import decode
from shunter.models.decoder import Decoder
from shunter.models.footprint import cache_bytes, cache_tokens, copied_bytes
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec, ExpertsSpec
from shunter.models.weights import Ordered
from shunter.parallel.live import LiveBytes
from shunter.plan.writing import Texts, Writes, held, seconds
from shunter.post.batch import Sample, grouped, micro_batches
from shunter.post.config import PostTrain, RlHow
from shunter.post.spent import Shape
from shunter.post.step import Scorer
from tests.draws import some
from tests.jobs.conftest import Work
from tests.jobs.test_delayed_rl import ANY
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks

__all__ = ["model", "talks"]  # fixtures

SPECS: dict[str, dict[str, Any]] = {
    "small": {"dim": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 160, "tied": True},
    "wide": {"dim": 192, "num_layers": 3, "num_heads": 3, "num_kv_heads": 3, "ffn_dim": 512, "tied": False},
    "normed": {
        "dim": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 256, "tied": True,
        "qk_norm": True, "family": "qwen3",
    },
}  # fmt: skip
PROMPT, ANSWER, GROUP = 24, 32, 4


def spec(name: str, **more: Any) -> DecoderSpec:
    return DecoderSpec(vocab_size=500, max_positions=128, head_dim=32, **{**SPECS[name], **more})


def writing(it: DecoderSpec, count: int, **more: Any) -> tuple[RolloutEngine, Texts, Writes]:
    """An engine that has been asked for `count` answers, and what the account would be told of them."""
    decoder = Decoder(it)
    init_weights(decoder, 0)
    writes, room = Writes(**more), PROMPT + ANSWER
    texts = Texts(count, count / GROUP, PROMPT, ANSWER, ANSWER, room)
    engine = RolloutEngine(
        decoder, SamplingConfig(max_new_tokens=ANSWER, batch=min(writes.at_once, count)), (),
        size=writes.block, tokens=cache_tokens(min(writes.at_once, count), room, writes.block, writes.cache),
    )  # fmt: skip
    for number in range(count):
        engine.submit([number // GROUP + 1] * PROMPT)
    return engine, texts, writes


# The last of some more than a CPU reads at once.
@some("more", [{}, {"block": 16}, {"cache": 300, "block": 4}, {"at_once": 96}], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_writing_holds_what_is_counted(
    name: str, more: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy to the byte; with cache and what passes to within three tenths, since not all that is counted
    is alive at one moment, or read at once."""
    more = {"at_once": 12, **more}
    engine, texts, writes = writing(spec(name), max(24, more["at_once"]), **more)
    parts = held(engine.model.spec, texts, writes)
    copies = [each for each in _weights(engine.stepper) if isinstance(each, Ordered)]
    assert sum(4 * each.weight.numel() for each in copies) == parts["copy"]
    engine.forget()
    # Another order is of tensors whose bytes nothing tells.
    monkeypatch.setattr(decode, "ordered", lambda weight: False)
    with LiveBytes([*engine.model.parameters(), engine.cache.store]) as live:
        engine.run()
    most = live.peak + engine.cache.store.nbytes
    read = parts["cache"] - cache_bytes(engine.model.spec, writes.tokens(texts), writes.block, 4)
    assert 0.7 * read <= 4 * len(engine.cache._read) <= read
    assert 0.7 <= most / (parts["cache"] + parts["passing"]) <= 1.15


@pytest.mark.parametrize("name", SPECS)
def test_what_is_rounded_once_a_step_is_counted(name: str) -> None:
    """As on a GPU in bf16: copies of all products and of the head."""
    it = spec(name)
    _, texts, _ = writing(it, 4, at_once=4)
    writes = Writes(at_once=4, copies=False, rounded=True, device="cuda")
    stepper = RolloutEngine(Decoder(it), SamplingConfig(batch=4), tokens=64, rounded=torch.bfloat16).stepper
    copies = [stepper.head, *(w for layer in stepper.layers for w in (layer.qkv, layer.out, layer.ffn[1]))]
    copies += [layer.ffn[0].both for layer in stepper.layers]
    exact = sum(part.nbytes for each in copies for part in each.parts)
    counted = held(it, texts, writes)["copy"]
    assert exact <= counted <= 1.03 * exact  # norms are counted too


def _weights(stepper: Any) -> list[Any]:
    found = [stepper.head]
    for layer in stepper.layers:
        found += [layer.qkv, layer.out]
        if isinstance(layer.ffn, tuple):
            gate, down = layer.ffn
            found += [getattr(gate, "gate", None), getattr(gate, "up", None), down]
    return found


def test_of_experts_the_rest_is_copied() -> None:
    experts = ExpertsSpec(num_experts=4, per_token=2, ffn_dim=32)
    it = spec("small", experts=experts, family="mixtral", tied=False)
    engine, _, _ = writing(it, 4, at_once=4)
    copies = [each for each in _weights(engine.stepper) if isinstance(each, Ordered)]
    assert sum(4 * each.weight.numel() for each in copies) == copied_bytes(it, 4)


@pytest.mark.parametrize(
    "more", [{"at_once": 8}, {"at_once": 16}, {"at_once": 48}, {"at_once": 48, "cache": 500}], ids=str
)
def test_passes_are_those_of_so_many_answers_at_once(more: dict[str, int]) -> None:
    """All are equally long, which is the worst: none ends while others go on."""
    engine, texts, writes = writing(spec("small"), 48, **more)
    engine.run()
    passes = max(texts.longest, texts.answers * texts.answer / writes.running(texts))
    assert 0.9 <= engine.steps / passes <= 1.5
    device = files.find("cpu").devices[0].spec
    assert seconds(spec("small"), texts, writes, device) > 0


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("name", SPECS)
def test_learning_holds_what_is_counted(name: str, shared: bool) -> None:
    """Of the widest of some micro-batches, whose rows answers share or not."""
    it = spec(name)
    draw = np.random.default_rng(0)
    groups = []
    for count in (4, 15, 16):  # a row of 536 tokens, in which each answer is put behind a copy of the prompt
        prompt = draw.integers(1, 500, PROMPT).tolist()
        texts = [prompt + draw.integers(1, 500, ANSWER).tolist() for _ in range(count)]
        groups.append([Sample(ids, [False] * PROMPT + [True] * ANSWER, {}) for ids in texts])
    every = [[sample] for group in groups for sample in group]
    batches = grouped(groups, 1100) if shared else micro_batches(every, 1100)
    shape = Shape()
    shape.add(batches)
    config = SimpleNamespace(train=PostTrain(steps=1, precision="fp32"), how=RlHow(device="cpu"))
    asked = mean_step(config, it, _widest(shape), None)
    one = files.find("cpu").subcluster(range(1))
    question, policy = predicted(asked, one, here=True, scored=shape.targets / shape.tokens)
    plan = rl_memory.of_phases(
        question,
        policy,
        None,
        rl_memory.Held(Writes(8), None, shape.widest[2], (shape.shared, PROMPT) if shape.shared else None),
    )
    decoder = Decoder(it)
    init_weights(decoder, 0)
    scorer = Scorer(decoder, torch.device("cpu"))
    widest = max(batches, key=lambda batch: batch.tokens.size)
    assert widest.shared == shared
    assert shape.shared == (15 if shared else 0)
    most = {}
    for phase in ("preparation", "learning"):
        with LiveBytes(decoder.parameters()) as live, torch.set_grad_enabled(phase == "learning"):
            found = scorer(widest, frozenset({"logprob"})).logprob
            assert found is not None
            if phase == "learning":
                found.sum().backward()
        most[phase] = live.peak + 12 * it.num_parameters  # weights, and moments that Adam has
    for phase, size in most.items():
        assert 0.85 <= size / plan[phase] <= 1.15, phase


@pytest.mark.parametrize("more", [{}, {"staleness": 1}], ids=["turns", "beside"])
def test_the_account_tells_phases_and_who_writes(
    work: Work, model: Path, talks: Path, more: dict[str, Any]
) -> None:
    how = {**(ANY if more else HOW), "at_once": 4}
    _, metrics = reinforce(work, model, talks, train={"steps": 2, "lr": 1e-3}, how=how, **more)
    account = metrics["account"]
    told = {each["phase"]: each for each in account["phases"]}
    assert told["learning"]["plan_memory_bytes"] > 0
    assert account["plan_step_seconds"] > 0
    assert ("writer_memory_bytes" in account) == bool(more)
    if more:
        # Of a tiny model: what writes has neither gradients nor moments. This process may be larger.
        began = account["began_memory_bytes"]
        assert began < account["plan_writer_memory_bytes"] < account["plan_memory_bytes"]
        assert 0.1 <= account["writer_memory_bytes"] / began <= 1.5
    else:
        few = told["writing"]["plan_memory_bytes"]
        how = {**how, "at_once": 12}
        _, metrics = reinforce(
            work, model, talks, "many", train={"steps": 2, "lr": 1e-3}, how={**how, "block": 16}
        )
        began = metrics["account"]["began_memory_bytes"] - account["began_memory_bytes"]
        assert metrics["account"]["phases"][0]["plan_memory_bytes"] - began > few


@pytest.mark.long
@pytest.mark.parametrize("case", bench.CASES)
def test_whole_processes_hold_about_as_much(case: str) -> None:
    """Resident bytes: to a quarter of those beyond the beginning, or to 50 MB, which kernels made for
    shapes, and pages of libraries, may come to."""
    found = bench.apart("small", case)
    for name, each in found.items():
        if isinstance(each, dict):
            near = abs(each["measured"] - each["predicted"]) <= 50e6
            assert near or 0.75 <= each["of_tensors"] <= 1.25, name
