"""Writing on a GPU: steps that are replayed as graphs write what is computed anew, and what a CPU writes; and
what is written is what the learner finds. Answers that share a prompt teach what a mask of their row does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from bench import grpo
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import generate
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.models import paged, replays
from shunter.models.decoder import Decoder
from shunter.models.forks import Forks
from shunter.models.spec import DecoderSpec
from shunter.post.batch import Sample, by_prompt, grouped, lay_out
from shunter.post.config import PolicyConfig
from shunter.post.judged import settings
from shunter.post.policy import Policy
from shunter.post.step import Gradient, Scorer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda", 0)
PLAIN = {
    "vocab_size": 211, "max_positions": 128, "dim": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 16, "ffn_dim": 96, "tied": True,
}  # fmt: skip
SPECS: dict[str, dict[str, Any]] = {
    "grouped": PLAIN,
    "normed": {**PLAIN, "qk_norm": True, "num_kv_heads": 4, "family": "qwen3"},
    "biased": {**PLAIN, "qkv_bias": True, "tied": False, "family": "qwen2"},
    "window": {**PLAIN, "sliding_window": 12, "family": "mistral", "tied": False},
}
LENGTHS = [3, 17, 9, 30, 17, 5, 2, 11]


def model(name: str) -> Decoder:
    made = Decoder(DecoderSpec(**SPECS[name]))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return made


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randint(1, 211, (n,), generator=draw).tolist() for n in LENGTHS for _ in range(2)]


def write(
    decoder: Decoder, *, replayed: bool, renewed: int = 10**9, drawn: Any = None, **more: Any
) -> list[Rollout]:
    config = SamplingConfig(max_new_tokens=40, batch=7, **(drawn or {"temperature": 1.0}))
    engine = RolloutEngine(decoder, config, [7], 3, size=4, **more)
    if not replayed:
        engine.recorder = None
    for prompt in prompts():
        engine.submit(prompt)
    while engine.busy:
        engine.step()
        if engine.steps == renewed:
            with torch.no_grad():
                for parameter in decoder.parameters():
                    parameter.mul_(1.01)
            engine.new_weights(1)
    assert (engine.replays is not None) == replayed
    return sorted(engine.finished, key=lambda one: one.number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "heads", "keys", "width", "size", "blocks", "window"),
    [(3, 4, 4, 32, 16, 9, None), (5, 6, 2, 24, 4, 33, None), (2, 8, 1, 64, 16, 200, 50),
     (130, 20, 20, 64, 16, 20, None), (1, 8, 2, 128, 16, 300, None), (3, 4, 2, 32, 3, 60, 7)],
)  # fmt: skip
def test_blocks_are_attended_to_where_they_lie(
    rows: int,
    heads: int,
    keys: int,
    width: int,
    size: int,
    blocks: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    """Short rows and long ones, whose parts several programs read, against plain attention in float64."""
    from shunter.models.paged_kernel import attend

    draw = torch.Generator().manual_seed(rows)
    layer = torch.randn((rows * blocks + 3) * size, 2 * keys * width, generator=draw).to(dtype)
    table = torch.randperm(rows * blocks + 3, generator=draw)[: rows * blocks].view(rows, blocks)
    positions = torch.randint(0, blocks * size, (rows,), generator=draw)
    positions[0] = rows % 2 * (blocks * size - 1)
    given = torch.randn(rows, heads + 2 * keys, width, generator=draw).to(dtype)
    here = [each.to(CUDA) for each in (given, layer, table, positions)]
    found = attend(*here, heads, size, window).double().cpu()
    slots = (table[:, :, None] * size + torch.arange(size)).view(rows, -1)
    k, v = layer[slots].double().view(rows, -1, 2, keys, width).permute(2, 0, 3, 1, 4)
    at = torch.arange(blocks * size)
    seen = at <= positions[:, None]
    if window is not None:
        seen &= at > positions[:, None] - window
    q = given[:, :heads].double().view(rows, keys, -1, width)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None]).reshape(rows, -1)
    assert (found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_replayed_steps_write_what_a_cpu_writes(
    name: str, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until rounding decides a token, which in 40 tokens of float32 is rare."""
    if not kernel:
        for module in (paged, replays):
            monkeypatch.setattr(module, "kernel_of", lambda cache: None)
    here = write(model(name).to(CUDA), replayed=True)
    there = write(model(name), replayed=False)
    same = [a.ids == b.ids for a, b in zip(here, there, strict=True)]
    assert sum(same) >= len(same) - 1
    for a, b, equal in zip(here, there, same, strict=True):
        if equal:
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("more", [{}, {"rounded": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("name", ["normed", "biased"])
def test_weights_that_change_between_two_tokens(name: str, more: dict[str, Any]) -> None:
    found = [write(model(name).to(CUDA), replayed=replayed, renewed=25, **more) for replayed in (True, False)]
    same = [a.ids == b.ids for a, b in zip(*found, strict=True)]
    assert sum(same) >= len(same) - 1
    assert {version for one in found[0] for version in one.versions} == {0, 1}


@pytest.mark.parametrize(
    "drawn",
    [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 9}, {"temperature": 1.0, "top_p": 0.8}],
    ids=str,
)
def test_whatever_is_drawn_by(drawn: dict[str, float]) -> None:
    found = [write(model("normed").to(CUDA), replayed=on, drawn=drawn, tempered=True) for on in (True, False)]
    assert sum(a.ids == b.ids for a, b in zip(*found, strict=True)) >= 2 * len(LENGTHS) - 1


def test_a_small_cache_puts_aside() -> None:
    found = [write(model("normed").to(CUDA), replayed=on, tokens=200) for on in (True, False)]
    assert sum(one.preempted for one in found[0]) > 0
    assert sum(a.ids == b.ids for a, b in zip(*found, strict=True)) >= 2 * len(LENGTHS) - 1


def test_where_bits_must_be_the_same_nothing_is_recorded() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        found = [write(model("normed").to(CUDA), replayed=False) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert [(a.ids, a.logprobs) for a in found[0]] == [(b.ids, b.logprobs) for b in found[1]]


def test_generate_and_each_token_as_it_comes() -> None:
    told: dict[int, list[int]] = {}
    config = SamplingConfig(max_new_tokens=20, batch=7)
    found = generate(
        model("grouped").to(CUDA), prompts(), config, [7],
        on_token=lambda number, id: told.setdefault(number, []).append(id),
    )  # fmt: skip
    assert told == {number: one.ids for number, one in enumerate(found)}


@pytest.mark.parametrize("name", SPECS)
def test_rounded_products_are_those_of_the_learner(name: str) -> None:
    decoder = model(name).to(CUDA)
    scorer = Scorer(decoder, CUDA, "bf16")
    apart = []
    for one in write(decoder, replayed=True, rounded=torch.bfloat16):
        ids = [*one.prompt, *one.ids]
        batch = lay_out([Sample(ids, [i >= len(one.prompt) for i in range(len(ids))])])
        says = torch.from_numpy(scorer.logprobs([batch])[0][batch.targets != -100])
        apart.append((says - torch.tensor(one.logprobs)).abs())
    assert float(torch.cat(apart).mean()) < 0.02


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("bf16", 3e-2)])
@pytest.mark.parametrize("name", ["grouped", "normed"])
def test_answers_behind_copies_teach_what_a_mask_does(name: str, precision: str, close: float) -> None:
    draw = torch.Generator().manual_seed(5)
    samples = []
    for size in (5, 20, 33):
        prompt = torch.randint(1, 211, (size,), generator=draw).tolist()
        for length in (3, 25, 18, 25):
            ids = prompt + torch.randint(1, 211, (length,), generator=draw).tolist()
            known = {"old": [-5.0] * length, "advantage": [float(torch.randn(1, generator=draw))] * length}
            samples.append(Sample(ids, [False] * size + [True] * length, known))
    batches = grouped(by_prompt(samples, 4096), 4096)
    build: Callable[..., Any] = Forks.build
    found = []
    for forced in (lambda s: build(s, always=True), lambda s: None):
        decoder = model(name).to(CUDA)
        scorer = Scorer(decoder, CUDA, precision)
        with patch.object(Forks, "build", forced):
            gradient = Gradient.early(scorer, Policy(settings(PolicyConfig(), 40)), len(samples))
            for batch in batches:
                gradient.add(batch)
        found.append({n: p.grad.double() for n, p in decoder.named_parameters() if p.grad is not None})
    for part, theirs in found[1].items():
        assert (found[0][part] - theirs).norm() < close * theirs.norm(), part


@pytest.mark.parametrize("staleness", [0, 1])
def test_practice_on_a_gpu(staleness: int, tmp_path: Path) -> None:
    """The whole job; beside the learner, a process of its own writes on the same GPU."""
    grpo.make(tmp_path)
    told = grpo.practise(
        tmp_path, 8, {"device": "cuda", "threads": 1, "log_every": 1}, train={"steps": 4, "lr": 1e-3},
        staleness=staleness,
    )  # fmt: skip
    found = [line["values"] for line in told if line["event"] == "metrics"]
    assert len(found) == 4
    assert all(each["rl/gap"] < 0.02 for each in found)
