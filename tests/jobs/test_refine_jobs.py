"""From an expert's texts to pairs, and from a model to a corpus that it edited.

What models learn is not shown here: `shunter reproduce refinex` measures it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from shunter.config.errors import ShunterError
from shunter.data import corpus, litter
from shunter.data import tokenizer as tokenizers
from shunter.data.curation.differences import distil
from shunter.data.curation.edits import execute, parse, shifted
from shunter.jobs import curate, edit_pairs, tokenizer
from shunter.jobs import litter as litter_job
from shunter.jobs.refiner import ModelWriter
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.spec import DecoderSpec
from tests.jobs.conftest import Work
from tests.models.small import redraw


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def texts(work: Work) -> dict[str, Path]:
    """Raw texts and what an expert made of them."""
    return {
        version: work(litter_job.JOB, {"texts": 120, "version": version}, name=version)[0]
        for version in ("raw", "expert", "clean")
    }


def pairs(work: Work, texts: dict[str, Path], name: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    inputs = {"raw": texts["raw"], "refined": texts["expert"]}
    return work(edit_pairs.JOB, {"raw": "r", "refined": "e", **options}, inputs=inputs, name=name)


def test_litter_is_what_it_says(texts: dict[str, Path]) -> None:
    rows = {row["id"]: row for row in corpus.rows(texts["raw"] / "train")}
    clean = {text.id: text.text for text in corpus.texts(texts["clean"] / "train")}
    made = list(litter.littered(120, 0))
    assert [row["text"] for row in rows.values()] == [each.text for each in made]
    assert {name for name in rows if name not in clean} == {
        f"web:{n}" for n, m in enumerate(made) if not m.clean
    }
    for number, each in enumerate(made):
        assert json.loads(str(rows[f"web:{number}"]["noise"])) == [list(span) for span in each.noise]
        assert clean.get(f"web:{number}", "") == each.clean


def test_pairs_teach_what_the_expert_did(work: Work, texts: dict[str, Path]) -> None:
    """The programs of a document's chunks, counted from its beginning, make of it what the expert left; what
    is no pair has a record."""
    out, metrics = pairs(work, texts, "pairs", chunk_chars=150, keep_all=None, heldout=0.2)
    told: dict[str, list[tuple[str, str]]] = {}
    sides: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        for talk in lines(out / f"{split}.jsonl"):
            name, number = talk["id"].split("#")
            assert int(number) == len(told.setdefault(name, []))
            told[name].append((talk["messages"][0]["content"], talk["messages"][1]["content"]))
            sides.setdefault(name, set()).add(split)
    assert all(len(side) == 1 for side in sides.values()), "chunks of a document stay on one side"
    assert any(len(parts) > 2 for parts in told.values())
    dropped = {record["id"]: record["reason"] for record in lines(out / "dropped.jsonl")}
    expert = {text.id: text.text for text in corpus.texts(texts["expert"] / "train")}
    for text in corpus.texts(texts["raw"] / "train"):
        calls, why = distil(text.text, expert.get(text.id, ""))
        if calls is None:
            assert dropped.pop(text.id) == why
            continue
        found, line = [], 0
        for shown, program in told.pop(text.id):
            mine, malformed = parse(program)
            assert malformed == 0
            found += shifted(mine, line)
            line += shown.count("\n") + 1
        assert execute(text.text, found).text == execute(text.text, calls).text
    assert not dropped
    assert not told
    assert metrics["train"] + metrics["heldout"] == sum(map(len, lines_of(out)))
    assert metrics["documents"] == 120


def lines_of(out: Path) -> list[list[dict[str, Any]]]:
    return [lines(out / f"{split}.jsonl") for split in ("train", "heldout")]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_programs_that_delete_nothing_are_balanced(work: Work, texts: dict[str, Path], share: float) -> None:
    out, metrics = pairs(work, texts, f"balanced-{share}", keep_all=share)
    programs = [talk["messages"][1]["content"] for talk in lines(out / "train.jsonl")]
    kept = programs.count("keep_all()")
    assert kept == metrics["deletes nothing"]
    assert kept / len(programs) <= share
    every = metrics["documents"] - sum(not r["id"].count("#") for r in lines(out / "dropped.jsonl"))
    assert (
        metrics["train"]
        + metrics["heldout"]
        + sum(record["reason"] == "deletes nothing" for record in lines(out / "dropped.jsonl"))
        == every
    )
    assert (kept + 1) / (len(programs) + 1) > share or share == 0.3, "as many as may be"


def test_texts_written_anew_are_pairs_too(work: Work, texts: dict[str, Path]) -> None:
    out, metrics = pairs(work, texts, "texts", writes="text", chunk_chars=500, heldout=0)
    expert = {text.id: text.text for text in corpus.texts(texts["expert"] / "train")}
    talks = lines(out / "train.jsonl")
    assert all(expert[talk["id"]] == talk["messages"][1]["content"] for talk in talks)
    reasons = {record["reason"] for record in lines(out / "dropped.jsonl")}
    assert reasons == {"longer than a chunk", "nothing is left"}
    assert len(talks) + len(lines(out / "dropped.jsonl")) == metrics["documents"]


def test_a_persons_own_pairs(tmp_path: Path, work: Work) -> None:
    records = [
        {"text": "Menu | Home | Log in\nA sentence.", "clean": "A sentence."},
        {"text": "Nothing to do.", "clean": "Nothing to do."},
        {"text": "Not refined."},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    config = {"sources": [{"path": "own.jsonl", "name": "own"}], "refined_field": "clean", "heldout": 0.0}
    out, metrics = work(edit_pairs.JOB, {**config, "keep_all": 0.5})
    talks = lines(out / "train.jsonl")
    assert [talk["messages"][1]["content"] for talk in talks] == ["remove_lines(0,0)", "keep_all()"]
    assert talks[0]["messages"][0]["content"] == "[0] Menu | Home | Log in\n[1] A sentence."
    assert metrics["problems"] == 1
    assert "not text" in str(lines(out / "problems.jsonl")[0])
    (tmp_path / "own.jsonl").write_text(json.dumps(records[1]) + "\n")
    with pytest.raises(ShunterError, match="nothing to learn from"):
        work(edit_pairs.JOB, config, name="none")
    for wrong in ({}, {"raw": "a"}, {**config, "raw": "a", "refined": "b"}):
        with pytest.raises(ValidationError, match="give raw and refined"):
            edit_pairs.EditPairsConfig(kind="edit-pairs", **wrong)


def test_a_tokenizer_learns_from_conversations(work: Work, texts: dict[str, Path]) -> None:
    made, _ = pairs(work, texts, "said")
    inputs = {"corpus": texts["raw"], "conversations": made}
    config = {"corpus": "c", "vocab_size": 500, "digits": False}
    out, _ = work(tokenizer.JOB, {**config, "conversations": "t"}, inputs=inputs)
    known = tokenizers.Tokenizer.load(out)
    plain, _ = work(tokenizer.JOB, config, inputs=inputs, name="plain")
    call = "remove_lines(0,1)"
    assert len(known.encode(call)) <= 9
    assert len(tokenizers.Tokenizer.load(plain).encode(call)) > len(known.encode(call)) + 3


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random one: what it writes is no program."""
    made = tmp_path / "model"
    text = "\n".join(each.text for each in litter.littered(40, 5))
    tokenizers.save(tokenizers.train([text], 400), made, max_length=160)
    spec = DecoderSpec(
        vocab_size=400, max_positions=160, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        ffn_dim=48,
    )  # fmt: skip
    decoder = Decoder(spec)
    redraw(decoder)
    stops = tokenizers.Tokenizer.load(made).stop_ids
    save_model(decoder, made, eos_token_id=stops, dtype=torch.float32)
    return made


def test_answers_do_not_depend_on_what_else_is_asked(model: Path) -> None:
    writer = ModelWriter(str(model), 12, 4)
    asked = [each.text[:40] for each in litter.littered(3, 6)]
    together = writer.write(asked)
    assert together == [writer.write([text])[0] for text in asked]
    assert all(answer.tokens <= 12 for answer in together)
    assert writer.room() < 160 - 12
    assert writer.sizes(["a", "a b c d"])[0] == 1
    with pytest.raises(ShunterError, match="has no room"):
        ModelWriter(str(model), 150, 4).room()


def refined(work: Work, model: Path, raw: Path, name: str, **how: int) -> tuple[list[dict[str, Any]], bytes]:
    config: dict[str, Any] = {
        "corpora": ["raw"],
        "refiner": "m",
        "operators": [{"kind": "refine", "max_new_tokens": 4}],
        "heldout": 0,
        "how": how,
    }
    out, _ = work(curate.JOB, config, inputs={"corpora": [raw], "refiner": model}, name=name)
    told = json.loads((out / "summary.json").read_text())["operators"][0]
    assert told["edits"]["tokens written"] > 0
    assert told["edits"]["malformed calls"] > 0
    return pq.read_table(out / "train").to_pylist(), (out / "dropped.jsonl").read_bytes()


def test_refined_alike_for_any_cut(work: Work, model: Path) -> None:
    """A chain with a model: the same corpus for any chunk of work."""
    raw, _ = work(litter_job.JOB, {"texts": 12}, name="few")
    whole = refined(work, model, raw, "whole", workers=1, chunk_chars=10**9)
    assert refined(work, model, raw, "parts", workers=1, chunk_chars=900) == whole
    assert {"program", "noise"} <= set(whole[0][0])


@pytest.mark.long
def test_refined_alike_by_workers(work: Work, model: Path, texts: dict[str, Path]) -> None:
    whole = refined(work, model, texts["raw"], "alone", workers=1, chunk_chars=10**9)
    assert refined(work, model, texts["raw"], "two", workers=2, chunk_chars=9000) == whole


def test_a_model_must_be_named(tmp_path: Path) -> None:
    config: dict[str, Any] = {"corpora": ["a"], "operators": [{"kind": "refine"}]}
    with pytest.raises(ValidationError, match="needs `refiner`"):
        curate.CurateConfig(kind="curate", **config)
    with pytest.raises(ValidationError, match="serves an operator that is not there"):
        curate.CurateConfig(kind="curate", corpora=["a"], operators=[{"kind": "edit-rules"}], refiner="m")
    parsed = curate.CurateConfig(
        kind="curate", corpora=["a"], operators=[{"kind": "refine", "model": "my-model"}]
    )
    with pytest.raises(ShunterError, match="a file of refine is not there"):
        curate.JOB.reads(parsed, tmp_path)
    (tmp_path / "my-model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "my-model" / name).touch()
    assert tmp_path / "my-model" / "model.safetensors" in curate.JOB.reads(parsed, tmp_path)
    assert "refiner" not in curate.CurateConfig(kind="curate", sources=[{"path": "x"}]).model_dump(), (
        "a job without is the one that it was"
    )
