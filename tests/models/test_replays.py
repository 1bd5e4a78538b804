"""Recorded steps write what passes write. Here a recorder does its work anew each time it is replayed, as a
graph of a GPU does (tests/cuda/test_writing.py): numbers stand where they are read, and sizes are fixed.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.generate.config import SamplingConfig
from shunter.generate.engine import generate
from shunter.generate.rollout import RolloutEngine
from shunter.models.decode import Stepper
from shunter.models.decoder import Decoder
from shunter.models.replays import roomy
from shunter.post.batch import Sample, lay_out
from shunter.post.step import Scorer
from tests.generate.test_engine import PROMPTS, VARIANTS, model
from tests.models.small import redraw

STOPS = [4, 9, 17, 30, 33]


class Recorder:
    """Counts what is recorded and what is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        work()

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def engine(decoder: Decoder, batch: int, seed: int, **more: Any) -> tuple[RolloutEngine, Recorder]:
    recorder = Recorder()
    config = SamplingConfig(max_new_tokens=20, batch=batch)
    return RolloutEngine(decoder, config, STOPS, seed, recorder=recorder, **more), recorder


@pytest.mark.parametrize("name", VARIANTS)
def test_replayed_steps_write_what_is_computed_each_time(name: str) -> None:
    decoder = model(name)
    writer, recorder = engine(decoder, 6, 4, size=2)
    for prompt in PROMPTS:
        writer.submit(prompt)
    config = SamplingConfig(max_new_tokens=20, batch=6)
    expected = generate(decoder, PROMPTS, config, STOPS, seed=4)
    found = writer.run()
    assert [one.ids for one in found] == [one.ids for one in expected]
    for one, theirs in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(theirs.logprobs, rel=1e-9)
    assert recorder.replayed + recorder.recorded > 10


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    batch=st.integers(1, 7),
    size=st.integers(1, 5),
    spare=st.integers(0, 60),
    copies=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_rows_that_come_go_and_are_put_aside(
    lengths: list[int], batch: int, size: int, spare: int, copies: int, seed: int
) -> None:
    decoder = model("grouped")
    draw = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(1, 61, (n,), generator=draw).tolist() for n in lengths for _ in range(copies)]
    writer, _ = engine(decoder, batch, seed, size=size, tokens=max(lengths) + 20 + spare)
    for prompt in prompts:
        writer.submit(prompt)
    config = SamplingConfig(max_new_tokens=20, batch=batch)
    expected = generate(decoder, prompts, config, STOPS, seed)
    assert [one.ids for one in writer.run()] == [one.ids for one in expected]
    assert (writer.cache.used, writer.cache.live) == (0, 0)


def test_what_is_recorded_outlives_new_weights() -> None:
    """Where they lie where they did; the values are those of now."""
    decoder = model()
    writer, recorder = engine(decoder, 4, 1)
    for round_ in range(3):
        redraw(decoder, round_)
        writer.new_weights(round_)
        for prompt in PROMPTS[:4]:
            writer.submit(prompt, stream=prompt[0])
        fresh, _ = engine(decoder, 4, 1)
        for prompt in PROMPTS[:4]:
            fresh.submit(prompt, stream=prompt[0])
        assert [one.ids for one in writer.run()] == [one.ids for one in fresh.run()]
        writer.finished = []
    kept = writer.replays
    assert kept is not None
    assert recorder.recorded == len(kept.made)  # nothing twice
    assert recorder.replayed > 20
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.data = parameter.data.clone()
    writer.new_weights(9)
    assert writer.replays is not kept


@pytest.mark.parametrize(
    "more", [{"qk_norm": True, "family": "qwen3"}, {"qkv_bias": True, "family": "qwen2"}]
)
def test_what_is_rounded_is_rounded_anew_and_stays_where_it_is(more: dict[str, Any]) -> None:
    """A graph reads copies where they were made: biases, norms and products, the head's among them."""
    decoder = Decoder(model("grouped").spec.model_copy(update=more))
    writer, _ = engine(decoder, 4, 1, rounded=torch.bfloat16)
    before: list[int] = []
    for round_ in range(2):
        redraw(decoder, round_)
        writer.new_weights(round_)
        fresh, _ = engine(decoder, 4, 1, rounded=torch.bfloat16)
        for each in (writer, fresh):
            for prompt in PROMPTS[:4]:
                each.submit(prompt, stream=prompt[0])
        assert [(one.ids, one.logprobs) for one in writer.run()] == [
            (one.ids, one.logprobs) for one in fresh.run()
        ]
        places = [each.data_ptr() for each in held_by(writer.stepper)]
        assert not before or places == before
        before = places


def held_by(stepper: Stepper) -> list[torch.Tensor]:
    """What a step reads beside the model's own parameters."""
    found = [stepper.norm]
    products: list[Any] = [stepper.head]
    for layer in stepper.layers:
        found += [layer.attention_norm, layer.ffn_norm]
        found += [] if layer.heads_norm is None else [layer.heads_norm]
        gate, down = layer.ffn  # type: ignore[misc]
        products += [layer.qkv, layer.out, gate.both, down]
    return found + [part for each in products for part in each.parts]


def test_a_step_that_could_not_be_recorded_is_recorded_when_it_comes_again() -> None:
    tries: list[int] = []

    def recorder(work: Callable[[], None]) -> Callable[[], None]:
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError
        work()
        return work

    config = SamplingConfig(max_new_tokens=6, batch=1)
    writer = RolloutEngine(model(), config, (), 1, recorder=recorder)
    writer.submit(PROMPTS[0])
    writer.step()
    with pytest.raises(MemoryError):
        writer.step()
    assert [one.ids for one in writer.run()] == [
        one.ids for one in generate(model(), PROMPTS[:1], config, seed=1)
    ]


def test_an_engine_is_freed_with_its_last_reference() -> None:
    """Its cache may be most of a GPU's memory, and nobody asks for cycles to be looked for there."""

    def recorder(work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: None  # a graph holds no Python

    writer = RolloutEngine(model(), SamplingConfig(max_new_tokens=6, batch=1), (), 1, recorder=recorder)
    writer.submit(PROMPTS[0])
    writer.run()
    assert writer.replays is not None
    freed = weakref.ref(writer.cache)
    gc.disable()
    try:
        del writer
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rounded_products_are_those_of_autocast(temperature: float) -> None:
    """A float32 model that learns in bfloat16 writes in it, too: closer to its trainer than a copy of the
    model in bfloat16, whose sums between layers are rounded as well."""
    decoder = model("grouped").float()
    gaps = []
    for rounded in (torch.bfloat16, None):
        part = decoder if rounded else model("grouped").float().bfloat16()
        config = SamplingConfig(max_new_tokens=20, batch=6, temperature=temperature)
        writer = RolloutEngine(part, config, STOPS, 4, recorder=Recorder(), rounded=rounded, tempered=True)
        for prompt in PROMPTS:
            writer.submit(prompt)
        found, apart = writer.run(), []
        scorer = Scorer(decoder, torch.device("cpu"), "bf16", temperature=temperature)
        for one in found:
            ids = [*one.prompt, *one.ids]
            batch = lay_out([Sample(ids, [i >= len(one.prompt) for i in range(len(ids))])])
            says = torch.from_numpy(scorer.logprobs([batch])[0][batch.targets != -100])
            apart.append((says - torch.tensor(one.logprobs)).abs())
        gaps.append(float(torch.cat(apart).mean()))
    assert writer.cache.store.dtype == torch.bfloat16
    assert gaps[0] < 0.02
    assert gaps[0] < gaps[1]


@given(st.integers(1, 5000))
def test_sizes_are_few_and_near(count: int) -> None:
    found = roomy(count)
    assert count <= found <= max(count, 1.5 * count)
    assert roomy(found) == found
    assert len({roomy(n) for n in range(1, 1025)}) == 20
