"""Bits per byte is exact: every token once, every byte once, whatever the window, batch and tokenizer."""

from __future__ import annotations

import lzma
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.evaluate import bits_per_byte
from shunter.evaluate.bits_per_byte import windows
from shunter.evaluate.config import BitsPerByteTask
from shunter.evaluate.heldout import HeldOut
from shunter.evaluate.likelihood import score_tokens, token_logprobs
from shunter.models.spec import RopeSpec
from shunter.report.summary import score_lines
from tests.evaluate.small import TEXTS, a_model, a_subject, a_tokenizer, no_tick, reference, rows


@given(st.integers(1, 70), st.integers(1, 40), st.floats(0, 0.9))
def test_windows_predict_every_token_once_with_context(length, size, overlap):
    tokens = np.arange(length)
    predicted = []
    for number, (_, part, first) in enumerate(windows(0, tokens, size, overlap)):
        assert len(part) - 1 <= size
        assert first >= (1 if number == 0 else max(1, min(size - 1, int(size * overlap))))
        predicted += part[first:].tolist()
    assert predicted == list(range(1, length))


@pytest.mark.parametrize("batch_tokens", [1, 50, 8192])
def test_log_probabilities_equal_a_full_softmax(batch_tokens):
    model = a_model(50)
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, 50, n).tolist() for n in (2, 30, 7, 1, 12)]
    begins = [1, 4, 6, 1, 1]
    counted = []
    found = token_logprobs(model, sequences, begins, batch_tokens=batch_tokens, tick=counted.append)
    for ids, begin, logprobs in zip(sequences, begins, found, strict=True):
        assert len(logprobs) == len(ids) - begin
        if len(ids) > begin:
            assert logprobs.sum() == pytest.approx(reference(model, ids, begin), abs=1e-4)
    assert sum(counted) == sum(len(ids) - begin for ids, begin in zip(sequences, begins, strict=True))


def test_padding_does_not_stretch_a_dynamic_position_embedding():
    model = a_model(50)
    model.spec = model.spec.model_copy(
        update={"rope": RopeSpec(scaling="dynamic", factor=2.0, original_positions=8)}
    )
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, 50, n).tolist() for n in (6, 12, 40)]
    found = token_logprobs(model, sequences, [1, 1, 1])
    for ids, logprobs in zip(sequences, found, strict=True):
        assert logprobs.sum() == pytest.approx(reference(model, ids), abs=1e-4)


def test_the_likeliest_token_is_marked(monkeypatch):
    monkeypatch.setattr("shunter.evaluate.likelihood.CHUNK_ELEMENTS", 1)
    model = a_model(50)
    ids = np.random.default_rng(0).integers(0, 50, 300).tolist()
    logits = model.logits(model(torch.tensor([ids[:-1]])))[0]
    ids[5] = int(logits[4].argmax())
    (found,) = score_tokens(model, [ids[:6]], [1])
    best = model.logits(model(torch.tensor([ids[:5]])))[0].argmax(-1)
    assert found.likeliest.tolist() == [int(best[i]) == ids[i + 1] for i in range(5)]
    assert found.likeliest[-1]
    (long,) = score_tokens(model, [ids], [3])
    assert long.logprobs.sum() == pytest.approx(reference(model, ids, 3), abs=1e-3), "chunks are joined"


def test_a_model_that_gives_no_numbers_is_named():
    model = a_model(50)
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(ShunterError, match="not numbers"):
        token_logprobs(model, [[1, 2]], [1])


def score(folder, subject, **task):
    return bits_per_byte.run(BitsPerByteTask(**task), subject, HeldOut(folder), 0, no_tick)


def test_bits_are_summed_over_all_tokens_and_divided_by_the_bytes_of_the_text(tmp_path):
    folder = rows(tmp_path)
    subject = a_subject(a_tokenizer(tmp_path / "model"))
    found = score(folder, subject, window=1024)
    end = subject.tokenizer.end_of_text
    bits = {
        name: -reference(subject.decoder, [end, *subject.tokenizer.encode(text), end]) / math.log(2)
        for name, text in TEXTS.items()
    }
    assert {item["id"]: item["bits"] for item in found["items"]} == pytest.approx(bits, rel=1e-5)
    overall = found["scores"][0]
    size = sum(len(text.encode()) for text in TEXTS.values())
    assert overall["value"] == pytest.approx(sum(bits.values()) / size, rel=1e-5)
    assert overall["low"] <= overall["value"] <= overall["high"]
    assert (overall["n"], overall["bytes"], overall["metric"]) == (len(TEXTS), size, "bits_per_byte")
    by_source = {s["task"]: s for s in found["scores"][1:]}
    assert set(by_source) == {"heldout alpha", "heldout be-ta"}
    joined = sum(s["value"] * s["bytes"] for s in by_source.values()) / size
    assert joined == pytest.approx(overall["value"])


@pytest.mark.parametrize("trained", [["alpha:0.1", "be-ta:9"], ["alpha:0"], ["alpha:00.1", "a:0.1"], None])
def test_sections_of_texts_seen_in_part_are_counted(trained, tmp_path):
    """Another section of the same text must be in the train part; whole documents do not count."""
    folder = rows(
        tmp_path, {"alpha:0.0": TEXTS["alpha:0"], "alpha:1": TEXTS["alpha:1"], "be-ta:2": TEXTS["be-ta:2"]}
    )
    if trained is not None:
        (folder / "train").mkdir()
        (folder / "train" / "ids.txt").write_text("".join(f"{name}\n" for name in trained))
    found = score(folder, a_subject(a_tokenizer(tmp_path / "model")))
    counted = {part["task"]: part["seen_in_part"] for part in found["scores"]}
    seen = int(trained is not None and "alpha:0.1" in trained)
    assert counted == {"heldout": seen, "heldout alpha": seen, "heldout be-ta": 0}
    line = score_lines(found["scores"])[0]
    assert ("1 of them sections of texts seen in part" in line) == bool(seen)


def test_a_model_that_knows_nothing_needs_the_same_bits_for_every_token(tmp_path):
    folder = rows(tmp_path, row_length=16)
    subject = a_subject(a_tokenizer(tmp_path / "model"))
    with torch.no_grad():
        subject.decoder.head_weight.zero_()
    found = score(folder, subject)
    overall = found["scores"][0]
    tokens = sum(len(subject.tokenizer.encode(text)) + 1 for text in TEXTS.values())
    assert overall["window"] == 16
    assert overall["tokens"] == tokens
    expected = tokens * math.log2(subject.tokenizer.vocab_size) / overall["bytes"]
    assert overall["value"] == pytest.approx(expected, rel=1e-6)


def test_more_context_is_used_when_windows_overlap(tmp_path):
    folder = rows(tmp_path)
    subject = a_subject(a_tokenizer(tmp_path / "model"))
    whole, half, none = (
        score(folder, subject, window=w, overlap=o)["items"][0]["bits"]
        for w, o in ((1024, 0.0), (32, 0.5), (32, 0.0))
    )
    assert len({whole, half, none}) == 3
    one = score(folder, a_subject(subject.tokenizer), window=32, overlap=0.5)["items"][0]["bits"]
    assert one == half


def test_the_baseline_is_xz_on_the_same_text(tmp_path):
    found = score(rows(tmp_path), a_subject(a_tokenizer(tmp_path / "model")))
    text = "".join(TEXTS.values()).encode()
    baseline = found["scores"][0]["baseline"]
    assert baseline == {"name": "xz -9", "value": 8 * len(lzma.compress(text, preset=9)) / len(text)}
    if program := shutil.which("xz"):
        packed = subprocess.run([program, "-9", "-c"], input=text, capture_output=True, check=True).stdout
        assert len(packed) / len(text) * 8 == pytest.approx(baseline["value"], rel=0.02)


def test_a_model_with_another_tokenizer_is_scored_on_the_same_bytes(tmp_path):
    folder = rows(tmp_path)
    subject = a_subject(a_tokenizer(tmp_path / "other", vocab_size=280))
    found = score(folder, subject, window=1024)
    end = subject.tokenizer.end_of_text
    text = TEXTS["alpha:0"]
    ids = [end, *subject.tokenizer.encode(text), end]
    item = found["items"][0]
    assert item["tokens"] == len(ids) - 1
    assert item["weight"] == len(text.encode())
    assert item["bits"] == pytest.approx(-reference(subject.decoder, ids) / math.log(2), rel=1e-5)
    ours = score(folder, a_subject(a_tokenizer(tmp_path / "same")), window=1024)
    assert ours["items"][0]["tokens"] != item["tokens"]


def test_some_documents_are_drawn_by_the_seed(tmp_path):
    folder = rows(tmp_path)
    subject = a_subject(a_tokenizer(tmp_path / "model"))
    first, again = (score(folder, subject, documents=3) for _ in range(2))
    assert first == again
    assert [item["id"] for item in first["items"]] != list(TEXTS)[:3]
    assert len(first["items"]) == 3


def test_what_cannot_be_scored_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ShunterError, match="these rows hold conversations"):
        HeldOut(rows(tmp_path / "talks", masked=True))
    subject = a_subject(a_tokenizer(tmp_path / "model"), context=64)
    nothing = score(rows(tmp_path / "none", {}), subject)
    assert nothing["scores"] == nothing["items"] == []
    assert "no held-out text to score" in nothing["problem"]
    folder = rows(tmp_path / "rows")
    with pytest.raises(ShunterError, match="window 128 exceeds the context of base, 64 tokens"):
        score(folder, subject, window=128)
    subject.decoder = a_model(40)
    with pytest.raises(ShunterError, match="the model's vocabulary ends at 39"):
        score(folder, subject)
