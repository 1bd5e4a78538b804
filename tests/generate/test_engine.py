"""Generation: the cache changes nothing, neighbours change nothing, transformers agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import Completion, generate
from shunter.generate.sampling import choose, uniforms
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.spec import DecoderSpec, RopeSpec

PROMPTS = [[5], [7, 8, 9, 10, 11], [3, 2], [1, 2, 3, 4, 5, 6, 7, 8], [60, 1, 1], [5]]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "norms": {"qk_norm": True, "family": "qwen3", "num_kv_heads": 1},
    "window": {"sliding_window": 6, "family": "mistral"},
    "scaled": {"rope": RopeSpec(scaling="llama3", factor=4.0, original_positions=8)},
    "tied": {"tied": True},
}


def model(name: str = "plain", positions: int = 64) -> Decoder:
    spec = DecoderSpec(
        **{
            "vocab_size": 61,
            "dim": 32,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 8,
            "ffn_dim": 48,
            "max_positions": positions,
            **VARIANTS[name],
        }
    )
    made = Decoder(spec).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def slowly(model: Decoder, prompt: list[int], completion: Completion) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, V] of each written token's place, each from a full forward pass of all before it."""
    rows = []
    for count in range(len(completion.ids)):
        ids = torch.tensor([prompt + completion.ids[:count]])
        with torch.no_grad():
            rows.append(model.logits(model(ids))[0, -1])
    return torch.stack(rows), torch.tensor(completion.ids)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_cache_changes_nothing(name: str) -> None:
    """Greedy tokens and log-probabilities equal those of full forward passes, for every prompt length."""
    decoder = model(name)
    done = generate(decoder, PROMPTS, SamplingConfig(temperature=0, max_new_tokens=14, batch=4))
    for prompt, completion in zip(PROMPTS, done, strict=True):
        logits, ids = slowly(decoder, prompt, completion)
        assert logits.argmax(-1).tolist() == completion.ids
        expected = logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(completion.logprobs, dtype=torch.float64), expected)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.6}])
def test_neighbours_change_nothing(settings: dict[str, float]) -> None:
    decoder = model("grouped")
    stops = [4, 9, 17, 30, 33]
    together = generate(decoder, PROMPTS, SamplingConfig(max_new_tokens=20, **settings), stops, seed=1)
    assert {c.stop_reason for c in together} == {"stop", "length"}, "the case tests no batch that shrinks"
    one = SamplingConfig(max_new_tokens=20, batch=1, **settings)
    assert [c.ids for c in generate(decoder, PROMPTS, one, stops, seed=1)] == [c.ids for c in together]
    assert generate(decoder, PROMPTS[:2], one, stops, seed=1)[1].ids == together[1].ids


def test_seeds_and_prompts_have_streams_of_their_own() -> None:
    decoder = model()
    config = SamplingConfig(max_new_tokens=16)
    first = generate(decoder, PROMPTS, config, seed=0)
    assert first[0].ids != first[5].ids, "the same prompt twice draws the same"
    assert [c.ids for c in generate(decoder, PROMPTS, config, seed=0)] == [c.ids for c in first]
    assert [c.ids for c in generate(decoder, PROMPTS, config, seed=1)] != [c.ids for c in first]


def test_stops_end_a_completion() -> None:
    decoder = model()
    free = generate(decoder, [[5]], SamplingConfig(temperature=0, max_new_tokens=20))[0]
    stop = free.ids[6]
    done = generate(decoder, [[5]], SamplingConfig(temperature=0, max_new_tokens=20), [stop])[0]
    assert done.ids == free.ids[: free.ids.index(stop) + 1]
    assert (done.stop_reason, free.stop_reason) == ("stop", "length")


def test_the_context_ends_a_completion() -> None:
    decoder = model(positions=10)
    long, short = generate(
        decoder, [list(range(1, 9)), [5]], SamplingConfig(temperature=0, max_new_tokens=40)
    )
    assert (len(long.ids), len(short.ids)) == (2, 9)
    assert {long.stop_reason, short.stop_reason} == {"context"}


def test_the_context_ends_those_that_stay_when_others_have_left() -> None:
    decoder = model(positions=24)
    done = generate(decoder, PROMPTS, SamplingConfig(max_new_tokens=40), [4, 9, 17], seed=3)
    reasons = [completion.stop_reason for completion in done]
    assert (reasons.count("stop"), reasons.count("context")) == (4, 2), "the case tests no batch that shrinks"
    for prompt, completion in zip(PROMPTS, done, strict=True):
        if completion.stop_reason == "context":
            assert len(prompt) + len(completion.ids) == 24


@pytest.mark.parametrize(("prompt", "complaint"), [([], "prompt 1 is empty"), ([1] * 10, "has 10 tokens")])
def test_prompts_that_cannot_be_continued(prompt: list[int], complaint: str) -> None:
    with pytest.raises(ShunterError, match=complaint):
        generate(model(positions=10), [[1], prompt], SamplingConfig())


def test_tokens_are_told_as_they_come() -> None:
    told: list[tuple[int, int]] = []
    done = generate(
        model(), PROMPTS, SamplingConfig(max_new_tokens=5), on_token=lambda i, token: told.append((i, token))
    )
    for number, completion in enumerate(done):
        assert [token for i, token in told if i == number] == completion.ids


def test_the_model_is_left_as_it_was() -> None:
    decoder = model()
    decoder.embed.weight.grad = torch.ones_like(decoder.embed.weight)
    generate(decoder, [[1]], SamplingConfig(max_new_tokens=3))
    assert decoder.training
    assert float(decoder.embed.weight.grad.sum()) == decoder.embed.weight.numel()


@pytest.mark.parametrize("name", ["plain", "norms", "window", "tied"])
def test_transformers_writes_the_same(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    decoder = model(name)
    save_model(decoder, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ours = generate(decoder, PROMPTS, SamplingConfig(temperature=0, max_new_tokens=20, batch=1))
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        written = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        assert written[0, len(prompt) :].tolist() == completion.ids


LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=12)


@given(LOGITS, st.integers(1, 12), st.floats(0.05, 1.0), st.floats(0.1, 3.0))
def test_only_allowed_tokens_are_drawn(
    values: list[float], top_k: int, top_p: float, temperature: float
) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    shares = (logits / temperature).softmax(-1)[0]
    if top_k < len(values):
        kept = shares >= shares.sort(descending=True).values[top_k - 1]
        shares = shares * kept
        shares = shares / shares.sum()
    for u in (0.0, 0.3, 0.999999):
        token, logprob = choose(logits, torch.tensor([u], dtype=torch.float64), config)
        likelier = float(shares[shares > shares[token]].sum())
        assert float(shares[token]) > 0
        assert likelier < top_p + 1e-9
        assert float(logprob) == pytest.approx(float(logits.log_softmax(-1)[0, token]))


def test_draws_follow_the_distribution() -> None:
    """4000 draws: each share within four standard errors."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    shares = logits.softmax(-1)[0]
    drawn = uniforms(0, 0, 4000)
    tokens = torch.cat([choose(logits, u[None], SamplingConfig())[0] for u in drawn])
    for token, share in enumerate(shares.tolist()):
        found = float((tokens == token).double().mean())
        assert abs(found - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_log_probabilities_do_not_end_where_probabilities_do() -> None:
    """exp(-120) is 0 in float32; its logarithm is not what a trainer computes."""
    logits = torch.tensor([[0.0, -120.0]])
    hot = SamplingConfig(temperature=100.0)
    token, logprob = choose(logits, torch.tensor([0.99], dtype=torch.float64), hot)
    assert (int(token), float(logprob)) == (1, -120.0)
    _, first = choose(torch.tensor([[0.0, -20.0]], dtype=torch.float64), None, SamplingConfig(temperature=0))
    assert float(first) == pytest.approx(-2.061e-9, rel=1e-3)


def test_the_coldest_draw_is_the_likeliest_token() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]])
    for temperature in (1e-4, 1e-20, 1e-50):
        for u in (0.0, 0.5, 0.999):
            config = SamplingConfig(temperature=temperature)
            assert int(choose(logits, torch.tensor([u], dtype=torch.float64), config)[0]) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_told(bad: float) -> None:
    for uniform in (None, torch.tensor([0.5], dtype=torch.float64)):
        with pytest.raises(ShunterError, match="scores are not finite"):
            choose(torch.tensor([[0.0, bad]]), uniform, SamplingConfig())
