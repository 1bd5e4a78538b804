"""Continuous batching on a paged cache: what is written is what `generate` writes, and what a trainer finds.

Float64, so that rounding decides no token; the bound in float32 has a test of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.tokens import IGNORE
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import generate
from shunter.generate.rollout import Rollout, RolloutEngine, rollouts
from shunter.models.decoder import Decoder
from shunter.models.paged import PagedCache, Pass, block_size, even_number
from shunter.post.batch import Sample, lay_out
from shunter.post.step import Scorer
from tests.generate.test_engine import PROMPTS, VARIANTS, model
from tests.models.small import redraw, spec_of

STOPS = [4, 9, 17, 30, 33]


def trainer(decoder: Decoder, done: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of what was written, as a training step computes them."""
    ids = [*done.prompt, *done.ids]
    batch = lay_out([Sample(ids, [i >= len(done.prompt) for i in range(len(ids))])])
    scorer = Scorer(decoder, torch.device("cpu"), temperature=temperature)
    return torch.from_numpy(scorer.logprobs([batch])[0][batch.targets != IGNORE])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.8, "top_k": 7}])
def test_it_writes_what_generate_writes(name: str, settings: dict[str, float]) -> None:
    decoder = model(name)
    config = SamplingConfig(max_new_tokens=20, batch=3, **settings)
    expected = generate(decoder, PROMPTS, config, STOPS, seed=1)
    found = rollouts(decoder, PROMPTS, config, STOPS, seed=1)
    assert [one.ids for one in found] == [one.ids for one in expected]
    assert [one.stop_reason for one in found] == [one.stop_reason for one in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, rel=1e-9)


def test_each_token_is_told_once_and_in_order() -> None:
    told: dict[int, list[int]] = {}
    config = SamplingConfig(max_new_tokens=20, batch=3)
    found = rollouts(
        model(), PROMPTS, config, STOPS, on_token=lambda number, id: told.setdefault(number, []).append(id)
    )
    assert told == {number: one.ids for number, one in enumerate(found)}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 40),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_no_amount_of_memory_changes_what_is_written(
    lengths: list[int], batch: int, size: int, spare: int, copies: int, seed: int
) -> None:
    """Any number of blocks that holds the longest text: the less, the more is put aside and read anew. Equal
    prompts too, of which those that come later copy what was read."""
    decoder = model("grouped")
    draw = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(1, 61, (n,), generator=draw).tolist() for n in lengths for _ in range(copies)]
    config = SamplingConfig(max_new_tokens=9, batch=batch)
    engine = RolloutEngine(decoder, config, STOPS, seed, tokens=max(lengths) + 9 + spare, size=size)
    for prompt in prompts:
        engine.submit(prompt)
    found = engine.run()
    assert [one.ids for one in found] == [one.ids for one in generate(decoder, prompts, config, STOPS, seed)]
    for one in found:
        torch.testing.assert_close(torch.tensor(one.logprobs, dtype=torch.float64), trainer(decoder, one))
    assert (engine.cache.used, engine.cache.live, sorted(engine.cache.free)) == (
        0, 0, list(range(engine.cache.blocks)),
    )  # fmt: skip


def test_a_request_joins_while_others_are_writing() -> None:
    decoder = model()
    engine = RolloutEngine(decoder, SamplingConfig(max_new_tokens=12, batch=8), seed=3)
    engine.submit(PROMPTS[0])
    for _ in range(4):
        engine.step()
    late = engine.submit(PROMPTS[1])
    done = engine.run()
    steps = {(event, number): step for step, event, number in engine.trace}
    assert steps["join", late] == 5
    assert steps["finish", 0] > 5, "the first had ended when the second came"
    alone = RolloutEngine(decoder, SamplingConfig(max_new_tokens=12), seed=3)
    alone.submit(PROMPTS[1], stream=late)
    assert alone.run()[0].ids == done[late].ids


def test_preempted_and_resumed_in_float32() -> None:
    """Log-probabilities within 1e-5 of the trainer's, though most requests were put aside at least once."""
    decoder = Decoder(spec_of("qwen3-tied"))
    redraw(decoder)
    engine = RolloutEngine(decoder, SamplingConfig(max_new_tokens=40, batch=6), tokens=120, size=4)
    for n in range(8):
        engine.submit([1 + n, 5, 7][: 1 + n % 3])
    done = engine.run()
    assert sum(one.preempted > 0 for one in done) >= 4
    for one in done:
        gap = (torch.tensor(one.logprobs, dtype=torch.float64) - trainer(decoder, one)).abs().max()
        assert float(gap) < 1e-5


@pytest.mark.parametrize("case", ["qwen2", "qwen3-tied", "llama-gqa-tied", "mistral-window", "mixtral"])
def test_new_weights_in_float32(case: str) -> None:
    """There weights are copied into another order, and rows are added that are nobody's: neither is seen."""
    decoder = Decoder(spec_of(case))
    redraw(decoder)
    engine = RolloutEngine(decoder, SamplingConfig(max_new_tokens=12, batch=19), size=4)
    for n in range(19):
        engine.submit([1 + n % 4, 5, 7, 2][: 1 + n % 3])
    for _ in range(5):
        engine.step()
    redraw(decoder, seed=5)
    engine.new_weights(1)
    for one in engine.run():
        begun = one.versions.index(1)
        assert begun == 5
        gap = torch.tensor(one.logprobs, dtype=torch.float64) - trainer(decoder, one)
        assert float(gap[begun:].abs().max()) < 1e-5
        assert float(gap[:begun].abs().max()) > 1e-3, "the weights are others"


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_any_lengths_in_groups_of_any_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group reads as many blocks of each of its rows as the longest has; where it costs nothing to have
    more groups, none reads more than there are."""
    decoder, reads, used = model(name), list[int](), list[int]()
    config = SamplingConfig(max_new_tokens=20, batch=6)
    expected = generate(decoder, PROMPTS, config, STOPS, seed=4)
    for apart in (0, 10**9):
        monkeypatch.setattr("shunter.models.paged.APART", {"cpu": apart})
        engine = RolloutEngine(decoder, config, STOPS, 4, size=2)
        for prompt in PROMPTS:
            engine.submit(prompt)
        read = engine.stepper.read

        def noted(turn: Pass, read: Any = read, engine: Any = engine) -> torch.Tensor:
            if not turn.whole:
                reads.append(turn.reads)
                used.append(engine.cache.used * 2)
            return read(turn)

        monkeypatch.setattr(engine.stepper, "read", noted)
        assert [one.ids for one in engine.run()] == [one.ids for one in expected]
    half = len(reads) // 2
    assert reads[:half] == used[:half]
    assert reads[half:] != used[half:]


def test_who_joins_is_read_in_the_pass_of_the_others() -> None:
    engine = RolloutEngine(model(), SamplingConfig(max_new_tokens=6, batch=3), seed=1)
    passes = []
    read = engine.stepper.read
    engine.stepper.read = lambda turn: passes.append(len(turn.tokens)) or read(turn)  # type: ignore
    for prompt in ([5, 6, 7], [8, 9], [1, 2, 3, 4]):
        engine.submit(prompt)
        engine.step()
    assert passes == [3, 2 + 1, 4 + 2]


@given(st.integers(1, 5000))
def test_even_numbers_are_few_and_near(count: int) -> None:
    found = even_number(count)
    assert count <= found <= max(count + 1, 1.125 * count)
    assert even_number(found) == found
    assert len({even_number(n) for n in range(2**9, 2**10)}) <= 9


def test_blocks_are_at_most_a_tenth_more_than_tokens() -> None:
    decoder = model(positions=256)
    lengths = [30, 60, 90, 45, 75, 20]
    size = block_size(sum(lengths) / len(lengths))
    engine = RolloutEngine(decoder, SamplingConfig(max_new_tokens=60, batch=6), size=size, tokens=1200)
    for number, length in enumerate(lengths):
        engine.submit([1 + number] * length)
    shares = []
    while engine.waiting or engine.running:
        engine.step()
        if engine.running:
            shares.append(engine.cache.used * size / engine.cache.live)
    assert max(shares) <= 1.1


def test_a_step_reads_no_blocks_but_those_of_its_rows() -> None:
    """One long text after many short ones: a step reads the blocks of the one, not the places of all."""
    decoder = model()
    config = SamplingConfig(max_new_tokens=30, batch=8)
    engine = RolloutEngine(decoder, config, seed=2, size=2)
    for n in range(7):
        engine.submit([3 + n] * 8, stream=n + 1, max_new_tokens=2)
    engine.submit([2, 3], stream=0)
    read = []
    through = engine.stepper.read
    engine.stepper.read = lambda turn: read.append(turn.reads) or through(turn)  # type: ignore
    done = engine.run()
    assert read[1] >= 60
    assert max(read[3:]) <= 32
    assert done[-1].ids == generate(decoder, [[2, 3]], config, seed=2)[0].ids


def test_new_weights_are_never_mixed_with_old_keys() -> None:
    decoder = model()
    engine = RolloutEngine(decoder, SamplingConfig(max_new_tokens=10, batch=4), version=7)
    for prompt in PROMPTS[:3]:
        engine.submit(prompt)
    for _ in range(3):
        engine.step()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1.1)
    engine.new_weights(8)
    for one in engine.run():
        assert set(one.versions) == {7, 8}
        assert one.versions == sorted(one.versions)
        begun = one.versions.index(8)
        torch.testing.assert_close(
            torch.tensor(one.logprobs[begun:], dtype=torch.float64), trainer(decoder, one)[begun:]
        )


def test_another_engine_goes_on_with_what_one_has_begun() -> None:
    """At each token: what comes is what would have come, with its log-probabilities."""
    decoder, config = model("grouped"), SamplingConfig(max_new_tokens=12, batch=4)
    whole = rollouts(decoder, PROMPTS, config, STOPS, seed=3)
    for steps in (1, 6):
        first = RolloutEngine(decoder, config, STOPS, 3)
        streams = {first.submit(prompt): number for number, prompt in enumerate(PROMPTS)}
        for _ in range(steps):
            first.step()
        parts = {streams[one.number]: one for one in first.begun}
        found = {streams[one.number]: one for one in first.finished}
        assert parts, "some are in the midst"
        then = RolloutEngine(decoder, config, STOPS, 3, version=7)
        left = {}
        for number, prompt in enumerate(PROMPTS):
            if number in parts:
                left[then.resume(parts[number], stream=number)] = number
            elif number not in found:
                left[then.submit(prompt, stream=number)] = number
        found |= {left[one.number]: one for one in then.run()}
        for number, expected in enumerate(whole):
            assert found[number].ids == expected.ids
            assert found[number].logprobs == pytest.approx(expected.logprobs, rel=1e-9)
            assert found[number].stop_reason == expected.stop_reason
        assert any(set(one.versions) == {0, 7} for one in found.values())


def test_equal_prompts_are_read_once() -> None:
    decoder = model()
    engine = RolloutEngine(decoder, SamplingConfig(max_new_tokens=6, batch=8))
    seen = []
    read = engine.stepper.read
    engine.stepper.read = lambda turn: seen.append(len(turn.tokens)) or read(turn)  # type: ignore
    for _ in range(4):
        engine.submit([5, 6, 7])
    done = engine.run()
    assert seen == [3, 4, 4, 4, 4, 4]
    assert len({tuple(one.ids) for one in done}) > 1, "each has a stream of its own"


@pytest.mark.parametrize("length", [1, 3])
def test_a_prompt_is_read_once_while_a_text_that_begins_with_it_runs(length: int) -> None:
    """Three at a time of ten; what was stored with weights of before is not copied."""
    decoder, texts = model(), list[int]()
    engine = RolloutEngine(decoder, SamplingConfig(max_new_tokens=6, batch=3), STOPS, seed=2, size=2)

    def run() -> list[Rollout]:
        read = engine.stepper.read

        def noted(turn: Pass) -> torch.Tensor:
            texts.append(sum(one.count for one in turn.whole))
            return read(turn)

        engine.stepper.read = noted  # type: ignore
        return engine.run()

    prompt = [5, 6, 7][:length]
    for _ in range(10):
        engine.submit(prompt)
    done = run()
    assert sum(texts) == 1
    expected = generate(decoder, [prompt] * 10, engine.config, STOPS, seed=2)
    assert [one.ids for one in done] == [one.ids for one in expected]
    assert len({len(one.ids) for one in done}) > 1, "they do not all join at once"
    engine.submit(prompt, stream=3)
    engine.step()
    engine.new_weights(1)
    engine.submit(prompt, stream=4)
    run()
    assert sum(texts) == 1 + 2 + 1


def test_tempered_log_probabilities_are_those_drawn_from() -> None:
    decoder = model()
    config = SamplingConfig(max_new_tokens=8, temperature=0.7)
    engine = RolloutEngine(decoder, config, tempered=True)
    engine.submit(PROMPTS[2])
    (one,) = engine.run()
    assert one.ids == generate(decoder, [PROMPTS[2]], config)[0].ids
    expected = trainer(decoder, one, temperature=0.7)
    torch.testing.assert_close(torch.tensor(one.logprobs, dtype=torch.float64), expected)


def test_what_cannot_be_written_is_refused() -> None:
    decoder = model()
    engine = RolloutEngine(decoder, SamplingConfig(max_new_tokens=30), tokens=16, size=4)
    with pytest.raises(ShunterError, match="is empty"):
        engine.submit([])
    with pytest.raises(ShunterError, match="does not fit a cache of 16"):
        engine.submit([1] * 16)
    engine.submit([1] * 10)
    with pytest.raises(ShunterError, match="a text of 17 tokens does not fit the cache"):
        engine.run()
    with pytest.raises(ShunterError, match="dynamic rope scaling"):
        RolloutEngine(Decoder(spec_of("llama-dynamic")), SamplingConfig())


def test_a_removed_row_leaves_nothing_behind() -> None:
    cache = PagedCache(model().spec, 8, 2, torch.float64)
    for tokens in (3, 4, 1):
        cache.add(tokens)
    cache.remove([0, 2])
    assert (cache.rows, cache.lengths, cache.live, cache.used) == ([[2, 3]], [4], 4, 2)
    cache.grow(0)
    assert cache.rows == [[2, 3, 0]]
