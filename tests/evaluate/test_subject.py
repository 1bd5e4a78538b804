"""Models come from their folders with their own tokenizers."""

from __future__ import annotations

import json

import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.evaluate import subject as subjects
from shunter.models.hf import save_model
from tests.evaluate.small import a_model, a_tokenizer, reference

CPU = torch.device("cpu")


def test_a_folder_is_a_subject(tmp_path):
    tokenizer = a_tokenizer(tmp_path / "tokenizer")
    model = a_model(tokenizer.vocab_size, context=96)
    save_model(model, tmp_path / "model", tokenizer_folder=tmp_path / "tokenizer")
    found = subjects.load("base", tmp_path / "model", None, CPU)
    assert (found.context, found.start) == (96, tokenizer.end_of_text)
    ids = [1, 5, 7, 100]
    assert reference(found.decoder, ids) == pytest.approx(reference(model, ids), abs=1e-6)


def test_a_model_without_a_tokenizer_takes_the_rows_one(tmp_path):
    tokenizer = a_tokenizer(tmp_path / "tokenizer")
    save_model(a_model(tokenizer.vocab_size), tmp_path / "model")
    found = subjects.load("base", tmp_path / "model", tmp_path / "tokenizer", CPU)
    assert found.tokenizer.folder == tmp_path / "tokenizer"
    with pytest.raises(ShunterError, match="the model base has no tokenizer"):
        subjects.load("base", tmp_path / "model", None, CPU)


def test_a_tokenizer_that_begins_texts_with_its_own_token_is_heeded(tmp_path):
    tokenizer = a_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for name in ("<|pad|>", {"content": "<|pad|>"}):
        path.write_text(json.dumps({**config, "bos_token": name}))
        found = subjects.Subject("x", a_model(300), type(tokenizer).load(tmp_path), CPU)
        assert found.start == tokenizer.special("<|pad|>")
