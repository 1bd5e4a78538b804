"""What a person has from elsewhere, tiny and random: a Hugging Face folder, conversations, a peft adapter."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from shunter.data import tokenizer as tokenizers
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.spec import DecoderSpec
from shunter.surgery.adapter_folder import save_adapter
from shunter.surgery.config import AdapterConfig
from shunter.surgery.lora import attach
from tests.models.small import redraw


def write(folder: Path) -> None:
    """`my-model/`, `talks.jsonl` and `their-adapter/` in `folder`."""
    talks = [{"prompt": f"what is {n} + 1?", "completion": f"it is {n + 1}."} for n in range(80)]
    text = "".join(json.dumps(talk) + "\n" for talk in talks)
    (folder / "talks.jsonl").write_text(text, encoding="utf-8")
    made = folder / "my-model"
    tokenizers.save(tokenizers.train([text], 320), made, max_length=128)
    tokenizer = tokenizers.Tokenizer.load(made)
    spec = DecoderSpec(
        vocab_size=tokenizer.vocab_size, max_positions=128, dim=32, num_layers=2, num_heads=2, num_kv_heads=1,
        head_dim=16, ffn_dim=48, family="qwen3", qk_norm=True,
    )  # fmt: skip
    model = Decoder(spec)
    redraw(model)
    save_model(model, made, eos_token_id=tokenizer.stop_ids, dtype=torch.bfloat16)
    config = AdapterConfig(rank=2, targets=["q", "v"])
    attach(model, config, seed=0)
    save_adapter(model, config, folder / "their-adapter")
