"""pretrain and sft on real rows: models that others load, refusals before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.data.tokens import IGNORE, TokenRows
from shunter.jobs import conversations, curate, pretrain, sft, tokenizer, tokens
from shunter.models.hf import load_model, read_spec
from shunter.recipe import identity
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_data_jobs import prose

SHAPE = {"dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "ffn_dim": 48}
TRAIN = {"steps": 8, "batch_rows": 4, "precision": "fp32", "validate_every": 4}
HOW = {"threads": 1, "log_every": 2}


@pytest.fixture
def rows(tmp_path: Path, work: Work) -> Path:
    return rows_in(tmp_path, work)


def rows_in(tmp_path: Path, work: Work) -> Path:
    records = "".join(json.dumps({"text": prose(n, 60)}) + "\n" for n in range(80))
    (tmp_path / "texts.jsonl").write_text(records)
    made, _ = work(curate.JOB, {"sources": [{"path": "texts.jsonl"}], "heldout": 0.2})
    learnt, _ = work(tokenizer.JOB, {"corpus": "c", "vocab_size": 300}, inputs={"corpus": made})
    out, _ = work(
        tokens.JOB,
        {"corpus": "c", "tokenizer": "t", "row_length": 32},
        inputs={"corpus": made, "tokenizer": learnt},
    )
    return out


def train(work: Work, rows: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    whole = {"tokens": "r", "model": SHAPE, "train": TRAIN, "how": HOW, **config}
    return work(pretrain.JOB, whole, inputs={"tokens": rows})


def test_a_pretrained_model_is_a_hugging_face_folder(rows: Path, work: Work) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, metrics = train(work, rows)
    spec = read_spec(out)
    assert (spec.vocab_size, spec.max_positions) == (300, 32)
    assert (
        metrics["parameters"] == spec.num_parameters == sum(p.numel() for p in load_model(out).parameters())
    )
    reader = AutoTokenizer.from_pretrained(out)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = reader("the ship of state", return_tensors="pt").input_ids
    ours = load_model(out)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(ids)), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert theirs.generation_config.eos_token_id
    assert metrics["heldout_bits_per_byte"] > 0


@pytest.mark.parametrize(
    "more",
    [
        {"capacity": 1.5, "balance_loss": 0.01},
        {"router": "sigmoid", "shared_ffn_dim": 16, "bias_update": 0.01},
    ],
    ids=["softmax", "sigmoid"],
)
def test_a_pretrained_mixture_is_a_hugging_face_folder(more: dict[str, Any], rows: Path, work: Work) -> None:
    from transformers import AutoModelForCausalLM

    shape = {**SHAPE, "num_layers": 2, "experts": {"num_experts": 4, "per_token": 2, "ffn_dim": 16, **more}}
    out, metrics = train(work, rows, model=shape)
    assert metrics["parameters"] == read_spec(out).num_parameters
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ours, ids = load_model(out), torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(ids)), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_training_goes_on_from_a_model(rows: Path, work: Work) -> None:
    first, before = train(work, rows)
    out, after = work(
        pretrain.JOB,
        {"tokens": "r", "init": "b", "train": TRAIN, "how": HOW},
        inputs={"tokens": rows, "init": first},
        name="more",
    )
    assert after["heldout_loss"] < before["heldout_loss"]
    assert read_spec(out) == read_spec(first)


def test_sft_learns_what_the_assistant_says(tmp_path: Path, rows: Path, work: Work) -> None:
    talks = [{"prompt": f"the ship {n}?", "completion": "sails on"} for n in range(60)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in talks))
    made, _ = work(conversations.JOB, {"sources": [{"path": "talks.jsonl"}], "heldout": 0.2})
    talk_rows, _ = work(
        tokens.JOB,
        {"conversations": "c", "tokenizer": "t", "row_length": 32},
        inputs={"conversations": made, "tokenizer": rows / "tokenizer"},
        name="talk-rows",
    )
    base, _ = train(work, rows)
    out, metrics = work(
        sft.JOB,
        {"model": "b", "tokens": "t", "train": {**TRAIN, "steps": 40, "lr": 5e-3}, "how": HOW},
        inputs={"model": base, "tokens": talk_rows},
    )
    data = TokenRows(talk_rows / "train")
    learnt = sum(data.rows(np.asarray([row])).num_valid for row in range(data.num_rows))
    assert 0 < learnt < data.index["tokens"]
    assert metrics["loss"] < 2.0, "the same answer each time is not learnt"
    assert "heldout_bits_per_byte" not in metrics, "targets are a part of the text only"
    assert (data.rows(np.arange(data.num_rows)).targets == IGNORE).any()
    assert load_model(out).spec == load_model(base).spec


def test_score_and_samples_stand_beside_the_loss(rows: Path, work: Work) -> None:
    look = {
        "every": 4,
        "prompts": ["the ship", "of state"],
        "max_new_tokens": 12,
        "questions": 6,
        "choices": {"choices": 2, "prompt_chars": 40, "answer_chars": 20},
    }
    out, _ = train(work, rows, how={**HOW, "milestones": look})
    log = out.parent / "log" / "events.jsonl"
    found = [row for row in events.read_metrics(log) if "milestone/accuracy" in row]
    assert [row["step"] for row in found] == [4, 8]
    for row in found:
        assert {"train/tokens", "valid/loss", "milestone/distinct_2", "milestone/repetition"} <= row.keys()
        assert 0 <= row["milestone/repetition"] <= 1
    samples = [e for e in events.read(log) if e["event"] == "sample"]
    assert [(e["step"], e["prompt"]) for e in samples] == [
        (step, prompt) for step in (4, 8) for prompt in ("the ship", "of state")
    ]
    assert {e["tokens"] for e in samples} == {row["train/tokens"] for row in found}


def test_looking_changes_nothing(rows: Path, work: Work) -> None:
    """Milestones stand in `how`: the weights must not know of them."""
    look = {"every": 4, "prompts": ["the"], "max_new_tokens": 5, "temperature": 1.0}
    plain, _ = train(work, rows)
    weights = (plain / "model.safetensors").read_bytes()
    watched, _ = work(
        pretrain.JOB,
        {"tokens": "r", "model": SHAPE, "train": TRAIN, "how": {**HOW, "milestones": look}},
        inputs={"tokens": rows},
        name="watched",
    )
    assert (watched / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model": None}, "either model"),
        ({"init": "x"}, "either model"),
        ({"how": {"milestones": {"every": 3}}}, "must be a multiple of train.validate_every"),
        ({"model": {**SHAPE, "num_heads": 3, "num_kv_heads": 2}}, "does not divide"),
    ],
)
def test_configurations_that_contradict(config: dict[str, Any], complaint: str) -> None:
    whole = {"kind": "pretrain", "tokens": "r", "model": SHAPE, "train": TRAIN, **config}
    with pytest.raises(ValueError, match=complaint):
        pretrain.PretrainConfig.model_validate(whole)


def test_another_length_is_another_run() -> None:
    """Steps are a part of the job's identity: no checkpoint of a run of another length is ever met."""

    def what(**train: int) -> dict[str, Any]:
        config = {"kind": "pretrain", "tokens": "r", "model": SHAPE, "train": {**TRAIN, **train}}
        return identity.what(pretrain.PretrainConfig.model_validate(config))

    assert what() == what(steps=8) != what(steps=9)


def test_rows_of_another_vocabulary_are_refused(tmp_path: Path, rows: Path, work: Work) -> None:
    base, _ = train(work, rows)
    config = json.loads((rows / "train" / "index.json").read_text())
    for split in ("train", "heldout"):
        index = json.loads((rows / split / "index.json").read_text())
        (rows / split / "index.json").write_text(json.dumps({**index, "vocab_size": 301}))
    with pytest.raises(ShunterError, match="vocabulary of 301, the model one of 300"):
        work(
            pretrain.JOB,
            {"tokens": "r", "init": "b", "train": TRAIN, "how": HOW},
            inputs={"tokens": rows, "init": base},
            name="more",
        )
    assert config["vocab_size"] == 300
