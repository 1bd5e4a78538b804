"""curate, tokenizer, conversations, tokens: from files to rows, nothing lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data.tokenizer import Tokenizer
from shunter.data.tokens import IGNORE, TokenRows
from shunter.jobs import conversations, curate, tokenizer, tokens
from shunter.recipe.job import Stopped
from tests.jobs.conftest import Still, Work

WORDS = ["the", "ship", "of", "state", "sails", "on", "over", "calm", "and", "rough", "water", "shore"]


def prose(number: int, length: int = 40) -> str:
    draw = np.random.default_rng(number)
    return " ".join(draw.choice(WORDS, size=length)) + f" {number}."


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"{number:03}.txt").write_text(prose(number) + "\n", encoding="utf-8")
    return tmp_path


SOURCES: list[dict[str, Any]] = [{"path": "texts", "licence": "mine"}]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_curate_accounts_for_every_document(texts: Path, work: Work) -> None:
    (texts / "texts" / "twice.txt").write_text(prose(3))
    (texts / "texts" / "short.txt").write_text("hi")
    (texts / "texts" / "bytes.txt").write_bytes(b"\xff\xfe bad " + prose(99).encode())
    out, metrics = work(curate.JOB, {"sources": SOURCES, "min_chars": 20, "heldout": 0.2})
    kept = {split: list(corpus.texts(out / split)) for split in ("train", "heldout")}
    dropped = lines(out / "dropped.jsonl")
    ids = [d.id for split in kept.values() for d in split] + [d["id"] for d in dropped]
    assert sorted(ids) == sorted(f"texts:{n}" for n in range(63))
    assert sorted(d["reason"] for d in dropped) == ["duplicate", "too short"]
    assert [(p["file"], p["line"]) for p in lines(out / "problems.jsonl")] == [("texts/bytes.txt", 1)]
    assert 3 < len(kept["heldout"]) < 25
    assert metrics["documents"] == len(kept["train"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sources"]["texts"]["licence"] == "mine"


def test_the_split_depends_on_the_text_alone(texts: Path, work: Work) -> None:
    """Other files, other order, one archive instead of many files: the same documents are held out."""
    first, _ = work(curate.JOB, {"sources": SOURCES, "heldout": 0.2}, name="first")
    records = [{"text": (texts / "texts" / f"{n:03}.txt").read_text()} for n in reversed(range(60))]
    (texts / "all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    second, _ = work(curate.JOB, {"sources": [{"path": "all.jsonl"}], "heldout": 0.2}, name="second")
    for split in ("train", "heldout"):
        assert {d.text for d in corpus.texts(first / split)} == {d.text for d in corpus.texts(second / split)}


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(20, 200), st.booleans())
def test_sections_are_the_text(lengths: list[int], limit: int, lines: bool) -> None:
    mark = "\n" if lines else "\n\n"
    text = mark.join("x" * length for length in lengths)
    parts = curate.sections(text, limit)
    assert mark.join(parts) == text
    longest = max(lengths)
    assert all(len(part) <= 1.5 * limit + longest for part in parts)
    assert curate.sections(text, 0) == [text]


def test_one_long_document_has_a_held_out_part(texts: Path, work: Work) -> None:
    (texts / "book.txt").write_text("\n\n".join(prose(n) for n in range(200)))
    config = {"sources": [{"path": "book.txt"}], "heldout": 0.1, "section_chars": 500}
    out, _ = work(curate.JOB, config)
    kept = {split: list(corpus.texts(out / split)) for split in ("train", "heldout")}
    assert len(kept["heldout"]) > 2
    together = sorted((d for part in kept.values() for d in part), key=lambda d: int(d.id.split(".")[1]))
    assert "\n\n".join(d.text for d in together) == (texts / "book.txt").read_text()


def test_curate_refuses_what_leaves_nothing(texts: Path, work: Work) -> None:
    with pytest.raises(ShunterError, match="none of 60 documents is left"):
        work(curate.JOB, {"sources": SOURCES, "min_chars": 100_000})


def test_curate_stops_on_request(texts: Path, work: Work) -> None:
    records = "".join(json.dumps({"text": prose(n)}) + "\n" for n in range(600))
    (texts / "many.jsonl").write_text(records)
    with pytest.raises(Stopped):
        work(curate.JOB, {"sources": [{"path": "many.jsonl"}]}, control=Still(stop_after=0))


@pytest.fixture
def prepared(texts: Path, work: Work) -> tuple[Path, Path]:
    made, _ = work(curate.JOB, {"sources": SOURCES, "heldout": 0.2})
    learnt, metrics = work(tokenizer.JOB, {"corpus": "c", "vocab_size": 300}, inputs={"corpus": made})
    assert metrics["vocab_size"] == 300
    return made, learnt


def test_a_vocabulary_that_the_text_cannot_fill_is_refused(texts: Path, work: Work) -> None:
    made, _ = work(curate.JOB, {"sources": SOURCES})
    with pytest.raises(ShunterError, match="gives only"):
        work(tokenizer.JOB, {"corpus": "c", "vocab_size": 50_000}, inputs={"corpus": made})


def test_rows_hold_the_whole_text(prepared: tuple[Path, Path], work: Work) -> None:
    made, learnt = prepared
    out, metrics = work(
        tokens.JOB,
        {"corpus": "c", "tokenizer": "t", "row_length": 64},
        inputs={"corpus": made, "tokenizer": learnt},
    )
    for split in ("train", "heldout"):
        rows = TokenRows(out / split)
        reader = Tokenizer.load(out / "tokenizer")
        end = reader.end_of_text
        batch = rows.rows(np.arange(rows.num_rows))
        flat = batch.tokens[batch.segments >= 0].tolist()
        expected: list[int] = []
        for document in corpus.texts(made / split):
            expected += [end, *reader.encode(document.text), end]
        assert flat == expected, "concat keeps the corpus's order and every token"
        assert rows.text_bytes == sum(len(d.text.encode()) for d in corpus.texts(made / split))
    assert metrics["filled"] > 0.9


def test_own_conversations_in_all_forms(texts: Path, work: Work) -> None:
    records = [
        {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "c?", "completion": "d"},
        {"question": "e?", "answer": "f"},
        {"instruction": "g?", "output": "h"},
        {"messages": [{"role": "user", "content": "alone"}]},
        {"prompt": "c?", "completion": "d"},
        {"nothing": 1},
    ]
    (texts / "talk.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    out, metrics = work(conversations.JOB, {"sources": [{"path": "talk.jsonl"}], "heldout": 0.0})
    assert [t["messages"][1]["content"] for t in lines(out / "train.jsonl")] == ["b", "d", "f", "h"]
    assert (metrics["duplicates"], metrics["problems"]) == (1, 2)
    assert [p["line"] for p in lines(out / "problems.jsonl")] == [5, 7]
    assert json.loads((out / "summary.json").read_text())["forms"]["prompt and completion"] == 2


def test_own_conversations_in_parquet(texts: Path, work: Work) -> None:
    pq.write_table(pa.Table.from_pylist([{"prompt": "c?", "completion": "d"}]), texts / "talk.parquet")
    out, _ = work(conversations.JOB, {"sources": [{"path": "talk.parquet"}], "heldout": 0.0})
    assert [t["messages"][1]["content"] for t in lines(out / "train.jsonl")] == ["d"]


@pytest.mark.parametrize("job", [curate.JOB, conversations.JOB])
def test_bad_sources_are_refused_by_the_check(texts: Path, job: Any) -> None:
    (texts / "a.jsonl").write_text('{"text": "one"}\n')
    for source, complaint in (
        ({"path": "a.jsonl", "template": "{{ text"}, "template"),
        ({"path": "a.jsonl", "encoding": "klingon"}, "klingon"),
    ):
        config = job.Config(kind=job.kind, sources=[source])
        with pytest.raises(ShunterError, match=complaint):
            job.check(config, texts)
    if job is conversations.JOB:
        asked = job.Config(kind=job.kind, arithmetic={"source": {"path": "a.jsonl", "template": "{{"}})
        with pytest.raises(ShunterError, match="template"):
            job.check(asked, texts)


def problems(path: Path, first: int, last: int) -> None:
    notes = [f"<<{a}+{b}={a + b}>> so <<{a}*{b}={a * b}>>" for a in range(first, last) for b in range(3, 9)]
    path.write_text("".join(json.dumps({"answer": note}) + "\n" for note in notes))


@pytest.mark.parametrize("own_heldout", [True, False])
def test_no_held_out_question_was_trained_on(texts: Path, work: Work, own_heldout: bool) -> None:
    problems(texts / "a.jsonl", 1, 12)
    problems(texts / "b.jsonl", 8, 20)
    arithmetic: dict[str, Any] = {
        "source": {"path": "a.jsonl", "field": "answer"},
        "phrasings": 3,
        "up_to": 9,
    }
    if own_heldout:
        arithmetic["heldout"] = {"path": "b.jsonl", "field": "answer"}
    out, _ = work(conversations.JOB, {"arithmetic": arithmetic, "heldout": 0.3})
    keys = {
        split: {t["id"].split("@")[0] for t in lines(out / f"{split}.jsonl")}
        for split in ("train", "heldout")
    }
    assert keys["train"]
    assert keys["heldout"]
    assert not keys["train"] & keys["heldout"]
    assert all(t["task"] == "arithmetic" for t in lines(out / "heldout.jsonl"))


def test_continuations_follow_the_corpus_split(prepared: tuple[Path, Path], work: Work) -> None:
    made, _ = prepared
    wanted = {"corpus": "c", "per_document": 2, "prompt_chars": 40, "answer_chars": 40}
    out, _ = work(conversations.JOB, {"continuation": wanted}, inputs={"continuation.corpus": made})
    for split in ("train", "heldout"):
        documents = {d.id: d.text for d in corpus.texts(made / split)}
        talks = lines(out / f"{split}.jsonl")
        assert talks
        for talk in talks:
            prompt, answer = (m["content"] for m in talk["messages"])
            text = documents[talk["id"].split("#")[0]]
            begin = text.index(prompt.removeprefix("Continue this address: "))
            rest = text[begin + len(prompt.removeprefix("Continue this address: ")) :]
            assert rest.lstrip().startswith(answer)


def test_conversations_become_masked_rows(texts: Path, prepared: tuple[Path, Path], work: Work) -> None:
    problems(texts / "a.jsonl", 1, 6)
    talks, _ = work(conversations.JOB, {"arithmetic": {"source": {"path": "a.jsonl", "field": "answer"}}})
    out, metrics = work(
        tokens.JOB,
        {"conversations": "t", "tokenizer": "t", "row_length": 48},
        inputs={"conversations": talks, "tokenizer": prepared[1]},
    )
    rows = TokenRows(out / "train")
    batch = rows.rows(np.arange(rows.num_rows))
    reader = Tokenizer.load(out / "tokenizer")
    learnt = "".join(reader.decode(batch.targets[batch.targets != IGNORE].tolist()).split())
    answers = [t["messages"][1]["content"] + "<|end|>" for t in lines(talks / "train.jsonl")]
    assert sorted(learnt.split("<|end|>")) == sorted("".join(answers).split("<|end|>"))
    assert metrics["overlong"] == 0


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_documents_are_replayed_among_conversations(
    share: float, texts: Path, prepared: tuple[Path, Path], work: Work
) -> None:
    """About the share that was asked for, or the whole corpus; learnt whole; never a held-out document."""
    made, learnt = prepared
    problems(texts / "a.jsonl", 1, 6)
    talks, _ = work(conversations.JOB, {"arithmetic": {"source": {"path": "a.jsonl", "field": "answer"}}})
    out, _ = work(
        tokens.JOB,
        {"conversations": "t", "corpus": "c", "replay": share, "tokenizer": "t", "row_length": 48},
        inputs={"conversations": talks, "corpus": made, "tokenizer": learnt},
    )
    rows = TokenRows(out / "train")
    names = (out / "train" / "ids.txt").read_text().split()
    known = {d.id for d in corpus.texts(made / "train")}
    lengths = np.diff(np.asarray(rows.borders))
    replayed = np.asarray([name in known for name in names])
    assert rows.mask is not None
    ends = np.cumsum(lengths)
    for name, begin, end in zip(names, ends - lengths, ends, strict=True):
        assert rows.mask[begin:end].all() == (name in known), name
    assert {name for name, is_text in zip(names, replayed, strict=True) if not is_text} == {
        talk["id"] for talk in lines(talks / "train.jsonl")
    }
    found = lengths[replayed].sum() / lengths.sum()
    longest = lengths.max() / lengths.sum()
    assert abs(found - share) < 6 * longest or set(names) >= known, f"{found} is far from {share}"
    heldout = (out / "heldout" / "ids.txt").read_text().split()
    assert not set(heldout) & {d.id for d in corpus.texts(made / "heldout")}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"tokenizer": "t"}, "either corpus or conversations"),
        ({"tokenizer": "t", "corpus": "a", "conversations": "b"}, "either corpus or conversations"),
        ({"tokenizer": "t", "corpus": "a", "replay": 0.1}, "both with replay"),
        ({"tokenizer": "t", "conversations": "a", "replay": 0.1}, "both with replay"),
        ({"tokenizer": "t", "replay": 0.1}, "both with replay"),
        ({"tokenizer": "t", "corpus": "a", "loss": "assistant"}, "no assistant"),
    ],
)
def test_inputs_that_contradict(config: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tokens.TokensConfig(kind="tokens", **config)
