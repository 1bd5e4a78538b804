"""A model made elsewhere: imported, tuned, evaluated and exported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.data import tokenizer as tokenizers
from shunter.jobs import conversations, imported, models, sft, tokens
from shunter.models.hf import load_model
from tests.jobs.conftest import Work


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder as transformers writes it, with settings of generation."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path / "elsewhere"
    tokenizers.save(tokenizers.train(["what is 2 + 3? it is 5. " * 40], 320), folder, max_length=128)
    tokenizer = tokenizers.Tokenizer.load(folder)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
            bos_token_id=tokenizer.end_of_text, eos_token_id=tokenizer.stop_ids[0],
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1,
        bos_token_id=tokenizer.end_of_text, eos_token_id=tokenizer.stop_ids,
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def same(a: Path, b: Path) -> bool:
    ids = torch.arange(40)[None]
    one, two = (load_model(folder) for folder in (a, b))
    with torch.no_grad():
        return bool(torch.equal(one.logits(one(ids)), two.logits(two(ids))))


def test_an_imported_model_is_tuned_and_exported(elsewhere: Path, work: Work, tmp_path: Path) -> None:
    config = {"path": "elsewhere"}
    assert imported.JOB.check(imported.ImportConfig(kind="import", **config), tmp_path) == []
    base, metrics = work(imported.JOB, config, base=tmp_path)
    assert same(base, elsewhere)
    assert metrics["parameters"] == load_model(elsewhere).spec.num_parameters
    settings = json.loads((base / "generation_config.json").read_text())
    assert (settings["temperature"], settings["top_p"], settings["repetition_penalty"]) == (0.6, 0.9, 1.1)
    assert settings["bos_token_id"] == json.loads((base / "config.json").read_text())["bos_token_id"]
    assert settings["bos_token_id"] is not None

    asked = [(f"what is {n} + 1?", f"{n + 1}") for n in range(60)]
    lines = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in asked
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    talks, _ = work(conversations.JOB, {"sources": [{"path": "talks.jsonl"}], "heldout": 0.2}, base=tmp_path)
    rows, _ = work(
        tokens.JOB, {"conversations": "c", "tokenizer": "t", "row_length": 64},
        inputs={"conversations": talks, "tokenizer": base},
    )  # fmt: skip
    tuned, told = work(
        sft.JOB,
        {"model": "m", "tokens": "r", "train": {"steps": 6, "batch_rows": 2, "lr": 1e-3},
         "how": {"threads": 1}},
        inputs={"model": base, "tokens": rows},
    )  # fmt: skip
    assert told["loss"] > 0
    assert not same(tuned, base)
    models.export(str(tmp_path / "store"), str(base), tmp_path / "again", "", "5GB")
    assert same(tmp_path / "again", elsewhere)
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == settings


def damaged(folder: Path, what: str) -> None:
    if what == "config":
        (folder / "config.json").unlink()
    elif what == "kind":
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**told, "model_type": "mamba"}))
    elif what == "weights":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("what", "says"),
    [("config", "no config.json"), ("kind", "model_type 'mamba'"), ("weights", r"no weights")],
)
def test_what_is_no_model_is_refused_before_any_work(
    elsewhere: Path, tmp_path: Path, what: str, says: str
) -> None:
    damaged(elsewhere, what)
    config: Any = imported.ImportConfig(kind="import", path="elsewhere")
    with pytest.raises(ShunterError, match=says):
        imported.JOB.check(config, tmp_path)
