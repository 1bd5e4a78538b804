"""A small model to learn with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from shunter.data import tokenizer as tokenizers
from shunter.data.tokenizer import Tokenizer
from shunter.generate.config import SamplingConfig
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.post.config import PolicyConfig, PostTrain, RewardConfig
from shunter.post.roles.stage import Play


def spec(vocab: int) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=vocab, max_positions=48, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        ffn_dim=48, qk_norm=True, tied=True, family="qwen3",
    )  # fmt: skip


def model_in(folder: Path) -> Path:
    """A model's folder."""
    texts = [f"What is {a} plus {b}? {a + b}" for a in range(10) for b in range(10)]
    tokenizers.save(tokenizers.train(texts, 300), folder / "tokenizer", max_length=48)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    decoder = Decoder(spec(tokenizer.vocab_size))
    init_weights(decoder, 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a fresh model's blocks add nothing
        for weight in decoder.layers.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    stops = tokenizer.stop_ids
    save_model(decoder, folder / "model", tokenizer_folder=folder / "tokenizer", eos_token_id=stops)
    return folder / "model"


def talks_in(folder: Path) -> Path:
    """A split of conversations."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(12):
        messages = [
            {"role": "user", "content": f"What is {n} plus {n % 3}{' again' * (n % 2)}?"},
            {"role": "assistant", "content": str(n + n % 3)},
        ]
        lines.append(json.dumps({"id": f"{n}", "task": "sums", "messages": messages}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return folder / "train.jsonl"


def play(model: Path, prompts: Path, algorithm: str = "grpo", **more: Any) -> Play:
    """What is learnt: to write letters from a to m."""
    given: dict[str, Any] = {
        "model": model, "prompts": prompts,
        "rewards": [RewardConfig(kind="format", pattern=".*[a-m].*")],
        "policy": PolicyConfig(algorithm=algorithm, kl=0.02),  # type: ignore[arg-type]
        "train": PostTrain(steps=2, lr=2e-3),
        "sampling": SamplingConfig(temperature=0.9, max_new_tokens=5, batch=16),
        "group": 4, "per_step": 4, "room": 40, "stops": list(Tokenizer.load(model).stop_ids), "seed": 3,
        "micro_tokens": 256, **more,
    }  # fmt: skip
    return Play(**given)
