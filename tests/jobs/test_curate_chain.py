"""curate with operators: the same corpus for any files and chunks, and a reason for all that left."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shunter.cli.corpus import sentence
from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data.curation import language
from shunter.data.curation.chain import Tally
from shunter.data.curation.runner import Done
from shunter.data.curation.why import why
from shunter.jobs import curate, curate_chain, limits, tokens
from shunter.jobs import languages as languages_job
from shunter.recipe.job import Stopped
from tests.data.curation import test_languages as languages
from tests.data.curation.test_runner import corpus as texts_of
from tests.jobs.conftest import Still, Work

FILES = ["train/00000.parquet", "heldout/00000.parquet", "dropped.jsonl", "samples.jsonl", "summary.json"]
CONFIG: dict[str, Any] = {
    "sources": [{"name": "web", "path": "web/*.jsonl", "licence": "mine"}],
    "preset": "fineweb2",
    "operators": [{"kind": "repeated-paragraphs"}],
    "heldout": 0.2,
}


def write(folder: Path, texts: list[str], files: int) -> None:
    """The texts in order, over so many files."""
    folder.mkdir(parents=True)
    size = -(-len(texts) // files)
    for number in range(files):
        rows = texts[number * size : (number + 1) * size]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (folder / f"{number}.jsonl").write_text(lines, encoding="utf-8")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_and_chunks_change_nothing(tmp_path: Path, work: Work) -> None:
    texts = texts_of(5, 90)
    made = []
    for files, chunk in ((1, 10**9), (4, 700)):
        write(tmp_path / str(files) / "web", texts, files)
        how = {"workers": 1, "chunk_chars": chunk}
        out, metrics = work(curate.JOB, {**CONFIG, "how": how}, base=tmp_path / str(files), name=f"n{files}")
        made.append({name: (out / name).read_bytes() for name in FILES})
        assert metrics["documents"] > 5
    assert made[0] == made[1]
    out = tmp_path / "made" / "n1" / "out"
    dropped = lines(out / "dropped.jsonl")
    kept = [d.id for split in ("train", "heldout") for d in corpus.texts(out / split)]
    assert sorted(kept + [d["id"] for d in dropped]) == sorted(f"web:{n}" for n in range(90))
    assert [int(d["id"][4:]) for d in dropped] == sorted(int(d["id"][4:]) for d in dropped)
    near = [d for d in dropped if d["reason"] == "near duplicate"]
    assert near
    assert all(int(d["of"][4:]) < int(d["id"][4:]) for d in near)
    table = pq.read_table(out / "train" / "00000.parquet")
    assert table.column_names == ["id", "source", "row", "text", "cluster_size"]
    assert max(table.column("cluster_size").to_pylist()) > 1
    summary = json.loads((out / "summary.json").read_text())
    names = [row["operator"] for row in summary["operators"]]
    assert names[0] == "near-duplicates"
    assert summary["operators"][-1]["kept"] == len(kept)


def test_why_tells_what_became_of_each_document(tmp_path: Path, work: Work) -> None:
    write(tmp_path / "web", texts_of(5, 60), 1)
    out, _ = work(curate.JOB, {**CONFIG, "how": {"workers": 1}})
    dropped = {record["id"]: record for record in lines(out / "dropped.jsonl")}
    for number in range(60):
        told = why(out, f"web:{number}")
        assert told["id"] == f"web:{number}"
        if told["id"] in dropped:
            assert told == {"state": "dropped", **dropped[told["id"]]}
            assert told["operator"] in sentence(told)
        else:
            rows = list(corpus.texts(out / told["split"]))
            assert rows[told["place"]].id == told["id"]
            assert f"{told['place']} of {told['split']}" in sentence(told)
    with pytest.raises(ShunterError, match="no document 'web:60'"):
        why(out, "web:60")


def test_excluded_texts_are_written(tmp_path: Path, work: Work) -> None:
    texts = texts_of(5, 60)
    write(tmp_path / "web", texts, 1)
    out, _ = work(curate.JOB, {**CONFIG, "normalise": False, "excluded": True, "how": {"workers": 1}})
    rows = pq.read_table(out / "excluded").to_pylist()
    records = [record for record in lines(out / "dropped.jsonl") if record["operator"] != "reading"]
    assert [(r["id"], r["operator"], r["reason"]) for r in rows] == [
        (r["id"], r["operator"], r["reason"]) for r in records
    ]
    assert all("text" not in record for record in records)
    near = [row for row in rows if row["reason"] == "near duplicate"]
    assert near
    assert all(row["text"] == texts[row["row"]] for row in near)


def test_parts_of_a_document_are_told_together(tmp_path: Path, work: Work) -> None:
    text = (
        "\n\n".join(f"Paragraph {n} of one long text that is cut." for n in range(8)) + "\n\n" + "short " * 9
    )
    (tmp_path / "book.txt").write_text(text)
    config = {"sources": [{"path": "book.txt"}], "section_chars": 90, "heldout": 0.0}
    operators = [{"kind": "gopher-quality", "min_words": 12, "min_stopwords": 0}]
    out, _ = work(curate.JOB, {**config, "operators": operators, "how": {"workers": 1}})
    parts = why(out, "book:0")["parts"]
    assert [part["id"] for part in parts] == [f"book:0.{n}" for n in range(len(parts))]
    assert {part["state"] for part in parts} == {"kept", "dropped"}


def test_a_stopped_job_goes_on(tmp_path: Path, work: Work) -> None:
    write(tmp_path / "web", texts_of(5, 90), 2)
    config = {**CONFIG, "how": {"workers": 1, "chunk_chars": 500}}
    expected, _ = work(curate.JOB, config, name="whole")
    stops = 0
    for allowed in range(1, 60, 7):
        try:
            out, _ = work(curate.JOB, config, name="stopped", control=Still(stop_after=allowed))
        except Stopped:
            stops += 1
        else:
            break
    else:
        out, _ = work(curate.JOB, config, name="stopped")
    assert stops > 2
    assert [(out / name).read_bytes() for name in FILES] == [(expected / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("preset", ["gopher", None])
def test_what_leaves_nothing_is_refused(tmp_path: Path, work: Work, preset: str | None) -> None:
    """What is staged goes when a job fails; the reasons lie in its log then, as the sentence says."""
    write(tmp_path / "web", ["short.", "", "also short."], 1)
    with pytest.raises(ShunterError, match="none of 3 documents is left") as caught:
        work(curate.JOB, {**CONFIG, "preset": preset, "operators": [], "min_chars": 7 if preset else 90})
    folder = Path(str(caught.value.where))
    assert folder == tmp_path / "made" / "curate" / "log"
    assert {record["id"] for record in lines(folder / "dropped.jsonl")} == {"web:0", "web:1", "web:2"}
    assert json.loads((folder / "summary.json").read_text())["read"] == 3
    assert (folder / "samples.jsonl").is_file() == (preset is not None)


@pytest.mark.parametrize("operators", [[{"kind": "mask-personal"}], []])
def test_a_duplicate_names_the_first(tmp_path: Path, work: Work, operators: list[dict[str, Any]]) -> None:
    write(tmp_path / "web", ["first text.", "second text.", "first text.", "third.", "second text."], 1)
    config = {**CONFIG, "preset": None, "operators": operators, "heldout": 0.0, "how": {"workers": 1}}
    out, _ = work(curate.JOB, config)
    dropped = {record["id"]: record for record in lines(out / "dropped.jsonl")}
    assert {name: record["of"] for name, record in dropped.items()} == {"web:2": "web:0", "web:4": "web:1"}
    assert "duplicate of web:0" in sentence(why(out, "web:2"))


def test_what_an_operator_leaves_empty_goes(tmp_path: Path, work: Work) -> None:
    """C4's rules without a least number of sentences, repeated paragraphs. What came empty stays."""
    paragraph = "A sentence of some words, which is long enough to be looked at."
    menu = "Home\nAbout us\nContact"
    write(tmp_path / "web", [f"{paragraph}\n{menu}", menu, f"{paragraph} And more."], 1)
    config = {**CONFIG, "preset": None, "heldout": 0.0, "how": {"workers": 1}}
    out, _ = work(curate.JOB, {**config, "operators": [{"kind": "c4-quality", "min_sentences": None}]})
    assert [each.text for each in corpus.texts(out / "train")] == [paragraph, f"{paragraph} And more."]
    told = {"operator": "c4-quality", "reason": "nothing is left", "value": 0.0, "limit": 0.0}
    assert lines(out / "dropped.jsonl") == [{"id": "web:1", **told}]
    write(tmp_path / "twice" / "web", [f"{paragraph}\n\nmore", paragraph, "   "], 1)
    operators = [{"kind": "repeated-paragraphs", "min_left": 0}]
    config.update(operators=operators, normalise=False)
    out, _ = work(curate.JOB, config, base=tmp_path / "twice", name="twice")
    assert [each.id for each in corpus.texts(out / "train")] == ["web:0", "web:2"], (
        "one that came empty stays"
    )
    assert [(d["id"], d["reason"]) for d in lines(out / "dropped.jsonl")] == [("web:1", "nothing is left")]


def test_speed_and_time_are_of_this_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages of four chunks, of which an earlier attempt did the first two."""
    now, told = [100.0], []

    class Events:
        def progress(self, done: int, total: None, unit: str, **shown: Any) -> None:
            told.append((done, shown))

    class Context:
        control, events = Still(), Events()

    monkeypatch.setattr(curate_chain.time, "perf_counter", lambda: now[0])
    watch = curate_chain._Watch(Context())  # type: ignore[arg-type]
    tally = Tally(documents=10, characters=3_000_000, kept=5, kept_characters=1)
    for stage in range(2):
        watch.begins(stage)
        for chunk in range(4):
            fresh = chunk >= 2
            now[0] += 2.0 if fresh else 0.0
            watch(stage, Done(5, [], [tally], [], fresh))
    assert [shown["MB/s"] for _, shown in told] == [0.0, 0.0, 1.5, 1.5] * 2
    assert [shown.get("seconds left") for _, shown in told] == [None] * 6 + [2, 0]
    assert [done for done, _ in told] == [10, 20, 30, 40] * 2
    assert {shown["kept"] for _, shown in told} == {"50%"}


def test_time_that_is_left_while_reading_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten chunks an earlier attempt did three; one takes two seconds; reading is one ahead."""
    now, told = [100.0], []

    class Events:
        def progress(self, done: int, total: None, unit: str, **shown: Any) -> None:
            told.append(shown.get("seconds left"))

    class Context:
        control, events = Still(), Events()

    class Read:
        read = 0

    monkeypatch.setattr(curate_chain.time, "perf_counter", lambda: now[0])
    watch = curate_chain._Watch(Context(), 1000)  # type: ignore[arg-type]
    watch.meter = Read()  # type: ignore[assignment]
    tally = Tally(documents=10, characters=3_000_000, kept=5, kept_characters=1)
    watch.begins(0)
    for chunk in range(10):
        fresh = chunk >= 3
        now[0] += 2.0 if fresh else 0.0
        Read.read = min(1000, 100 * (chunk + 2))
        watch(0, Done(5, [], [tally], [], fresh))
    assert told == [None] * 3 + [10, 8, 6, 4, 2, 0, 0]


def test_a_language_that_the_model_does_not_tell_is_refused(tmp_path: Path, work: Work) -> None:
    labels = ["aa"] * 9 + ["bb"] * 9
    model = language.LanguageModel.train(["aaa"] * 9 + ["bbb"] * 9, labels, 8)
    (tmp_path / "m").mkdir()
    model.save(tmp_path / "m")
    write(tmp_path / "web", ["words"], 1)
    asked = {"kind": "language", "model": "m", "keep": ["aa", "cc"]}
    config = {**CONFIG, "preset": None, "operators": [asked]}
    with pytest.raises(ShunterError, match="does not tell 'cc', which language asks for"):
        work(curate.JOB, config)
    config["operators"] = [{**asked, "keep": None}, {"kind": "precision", "language": "ab", "words": ["x"]}]
    with pytest.raises(ShunterError, match="does not tell 'ab', which precision asks for"):
        work(curate.JOB, config)


def test_damaged_sources_are_told_and_passed(tmp_path: Path, work: Work) -> None:
    """Broken lines, garbage and a gzip file that is cut: counted, and the rest goes on."""
    import gzip

    folder = tmp_path / "web"
    write(folder, texts_of(5, 60), 1)
    with (folder / "0.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\x00garbage\n{"text": 3}\n{"text": "torn')
    whole = gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts_of(6, 60)).encode())
    (folder / "1.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "2.jsonl").write_bytes(b"")
    config = {**CONFIG, "sources": [{"name": "web", "path": "web/*"}], "how": {"workers": 1}}
    out, metrics = work(curate.JOB, config)
    problems = lines(out / "problems.jsonl")
    assert metrics["problems"] == len(problems) >= 4
    assert any("breaks off" in problem["problem"] for problem in problems)
    dropped = lines(out / "dropped.jsonl")
    kept = [d.id for split in ("train", "heldout") for d in corpus.texts(out / split)]
    assert len(set(kept + [d["id"] for d in dropped])) == len(kept) + len(dropped) > 70


def test_languages_limits_and_copies(tmp_path: Path, work: Work) -> None:
    """From labelled texts to a corpus of two languages with limits, stopwords and copies of their own."""

    def spoken(number: int, count: int, own: int = 0) -> list[str]:
        """The first language has English stopwords, as English limits want."""
        texts = languages.texts_of(number, 5 if number == 1 else 14, count, own=own)
        return [f"the and of {text}" for text in texts] if number == 1 else texts

    english, ours = spoken(1, 60), spoken(2, 60)
    for name, texts in (("aa", english), ("bb", ours)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8")
    references = [{"name": name, "path": f"{name}.txt"} for name in ("aa", "bb")]
    model, told = work(languages_job.JOB, {"sources": references, "chars": 300, "bits": 12})
    assert told["heldout_accuracy"] > 0.9
    fitted, _ = work(limits.JOB, {"sources": references, "english": "aa", "chars": 500})
    found = json.loads((fitted / "limits.json").read_text())
    assert len(found["stopwords"]["bb"]) >= 8
    fresh = [text for n in range(8) for number in (1, 2) for text in spoken(number, 4, own=n + 1)]
    copied = [f"{text[:-1]} {n}." for text in fresh[::7] for n in range(3)]
    rows = [{"text": t, "url": f"https://{n}.example"} for n, t in enumerate(fresh + copied)]
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "0.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {
        "sources": [{"name": "web", "path": "web/*.jsonl", "url": "url"}],
        "preset": "fineweb2",
        "languages": "l",
        "rehydrate": 4,
        "how": {"workers": 1},
    }
    inputs = {"languages": model, "limits": fitted}
    plain, _ = work(curate.JOB, config, inputs={"languages": model}, name="plain")
    out, _ = work(curate.JOB, {**config, "limits": "f"}, inputs=inputs, name="fitted")
    kept = {}
    for folder in (plain, out):
        table = pq.read_table(folder / "train")
        assert {"language", "language_score", "cluster_size", "copies", "url"} <= set(table.column_names)
        kept[folder] = Counter(table.column("language").to_pylist())
    assert kept[plain]["bb"] == 0, "English limits drop long words"
    assert kept[out]["bb"] > 15
    operators = [{"kind": "language"}, {"kind": "precision", "language": "bb", "above": None}]
    bare = {"sources": config["sources"], "languages": "l", "limits": "f", "how": {"workers": 1}}
    own, _ = work(curate.JOB, {**bare, "operators": operators}, inputs=inputs, name="own")
    gone = [record for record in lines(own / "dropped.jsonl") if record["operator"] == "precision"]
    assert all(record["language"] == "bb" for record in gone)
    assert len(gone) < 10, "the words are those that `limits` found"
    operators[1]["language"] = "aa"
    (fitted / "limits.json").write_text(json.dumps({**found, "own_words": {}}))
    with pytest.raises(ShunterError, match="found no word of 'aa' alone"):
        work(curate.JOB, {**bare, "operators": operators}, inputs=inputs, name="without")
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["languages"]) == {"aa", "bb"}
    assert min(summary["copies"].values()) >= 1
    again, _ = work(
        curate.JOB,
        {"corpora": ["c"], "operators": [{"kind": "gopher-quality", "min_stopwords": 0, "max_mean_word": 9}]},
        inputs={"corpora": [out]},
        name="again",
    )
    ids = [d.id for split in ("train", "heldout") for d in corpus.texts(again / split)]
    assert ids
    assert set(ids) < {d.id for split in ("train", "heldout") for d in corpus.texts(out / split)}


def test_copies_are_shown_as_often(tmp_path: Path) -> None:
    writer = corpus.Writer(tmp_path, {"copies": pa.int32()})
    for number in range(3):
        writer.write(f"a:{number}", "a", number, f"text {number}", number + 1)
    writer.close()

    class Plain:
        start = end_of_text = 0

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[int(text[-1])] for text in texts]

    for repeat, expected in (
        (True, ["a:0", "a:1", "a:1", "a:2", "a:2", "a:2"]),
        (False, ["a:0", "a:1", "a:2"]),
    ):
        parts = [part() for part in tokens.documents(tmp_path, Plain(), repeat=repeat)]  # type: ignore[arg-type]
        assert [name for part in parts for name in part.ids] == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sources": []}, "give sources, corpora or both"),
        ({"rehydrate": 3}, "rehydrate needs near-duplicates"),
        ({"operators": [{"kind": "language"}]}, "needs `languages`"),
        ({"operators": [{"kind": "confidence-cut"}]}, "needs language before it"),
        ({"preset": "gopher", "limits": "f"}, "limits serve documents whose language is known"),
        ({"preset": "gopher", "languages": "l"}, "languages serve documents whose language is known"),
        (
            {"operators": [{"kind": "gopher-quality"}, {"kind": "language", "model": "m"}], "limits": "f"},
            "limits serve gopher-quality only after language",
        ),
        (
            {"operators": [{"kind": "fineweb-quality", "by_language": {"aa": {"line feeds": 1.0}}}]},
            "fineweb-quality has limits by language and needs language before it",
        ),
        (
            {"operators": [{"kind": "gopher-quality", "stopwords_by_language": {"aa": ["a"]}}]},
            "gopher-quality has limits by language and needs language before it",
        ),
        (
            {"operators": [{"kind": "precision", "language": "aa", "words": ["a"]}]},
            "precision needs language before it",
        ),
        (
            {"operators": [{"kind": "language", "model": "m"}], "languages": "l"},
            "no language operator uses languages",
        ),
        (
            {"operators": [{"kind": "language", "model": "m"}, {"kind": "precision", "language": "aa"}]},
            "precision needs `words`, or `limits`",
        ),
        ({"operators": [{"kind": "gopher-repetition", "top": {0: 0.2}}]}, "greater than or equal to 1"),
        ({"operators": [{"kind": "gopher-repetition", "repeated": {-1: 0.2}}]}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_go_together_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curate.CurateConfig(kind="curate", **{"sources": CONFIG["sources"], **config})


def test_a_named_model_is_part_of_what_a_corpus_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "0.jsonl").write_text('{"text": "words"}\n')
    config = curate.CurateConfig(
        kind="curate",
        sources=CONFIG["sources"],
        operators=[{"kind": "language", "model": "labels"}],  # type: ignore[list-item]
    )
    assert [path.name for path in curate.JOB.reads(config, tmp_path)][-2:] == [*language.FILES]
    with pytest.raises(ShunterError, match="no language model is here"):
        curate.JOB.check(config, tmp_path)
