"""From a packed token to its document, and from a document to what every corpus on its way made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.cli import main as cli
from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data.curation import why
from shunter.data.show import origin
from shunter.data.tokenizer import Tokenizer
from shunter.data.tokens import TokenRows
from shunter.jobs import became as ways
from shunter.jobs.became import became, token, within
from shunter.jobs.sites import BETWEEN
from shunter.recipe.store import Store
from tests.data.curation.test_runner import corpus as texts_of
from tests.jobs.test_curate_chain import lines, write

RECIPE = """
version: 1
name: ways
seed: 0
jobs:
  raw: {kind: curate, sources: [{name: web, path: web, licence: mine}], heldout: 0.1, min_chars: 30}
  clean: {kind: curate, corpora: [raw], operators: [{kind: near-duplicates}], how: {workers: 1}}
  mixture: {kind: mix, corpora: [clean], budget: 4000}
  tokenizer: {kind: tokenizer, corpus: raw, vocab_size: 300}
  rows: {kind: tokens, corpus: mixture, tokenizer: tokenizer, row_length: 64}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the recipe makes."""
    folder = tmp_path_factory.mktemp("ways")
    write(folder / "web", [f"{n} {text}" for n, text in enumerate(texts_of(5, 60))], 2)
    (folder / "ways.yaml").write_text(RECIPE)
    assert cli.main(["run", str(folder / "ways.yaml"), "--store", str(folder / "store")]) == 0
    return Store(folder / "store")


def test_every_document_is_told_of_by_every_corpus_on_its_way(store: Store) -> None:
    """Also by default, when the newest corpus has never seen it."""
    names = ("mixture", "clean", "raw")
    ends = {name: set[str]() for name in names}
    for number in range(60):
        told = became(store, f"web:{number}")
        assert [each.corpus.name for each in told] == list(names[-len(told) :])
        states = [each.told["state"] for each in told]
        assert states[1:] == ["kept"] * (len(told) - 1), "what is read on was kept before"
        assert len(told) == 3 or states[0] == "dropped"
        ends[told[0].corpus.name].add(states[0])
        for each in told:
            assert each.told == why.why(each.corpus.path, f"web:{number}")
    assert ends == {"mixture": {"kept", "dropped"}, "clean": {"dropped"}, "raw": {"dropped"}}
    with pytest.raises(ShunterError, match=r"no document 'web:60'"):
        became(store, "web:60")
    with pytest.raises(ShunterError, match=r"no document 'web:60' .* its sources are web"):
        became(store, "web:60", store.get("mixture"))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_token_is_of_a_document_that_stands_in_the_corpus(store: Store, split: str) -> None:
    """What the tokens of a document say, put together by their places, is its text."""
    made = store.get("rows")
    rows, tokenizer = TokenRows(made.path / split), Tokenizer.load(made.path / "tokenizer")
    texts = {each.id: each.text for each in corpus.texts(store.get("mixture").path / split)}
    said: dict[str, dict[int, str]] = {name: {} for name in texts}
    for row in range(rows.num_rows):
        filled = np.flatnonzero(rows.rows(np.array([row])).segments[0] >= 0).tolist()
        for place in filled:
            found = origin(rows, tokenizer, row, place)
            low, high = found.chars
            said[found.document][found.index] = texts[found.document][low:high]
            assert high == low or said[found.document][found.index] == found.text
        if len(filled) < rows.row_length:
            with pytest.raises(ShunterError, match="is padding"):
                origin(rows, tokenizer, row, rows.row_length - 1)
    assert {name: "".join(parts[n] for n in sorted(parts)) for name, parts in said.items()} == texts
    found, told = token(store, made, split, 0, 5)
    assert [each.corpus.name for each in told] == ["mixture", "clean", "raw"]
    assert (told[0].told["id"], told[0].told["split"]) == (found.document, split)


def test_on_the_command_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--store", str(store.path)]
    gone = lines(store.get("clean").path / "dropped.jsonl")[0]
    assert cli.main(["corpus", "why", gone["id"], *place]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"in clean-{store.get('clean').id[:12]}: {gone['id']}: dropped by near-duplicates"
    )
    assert second.startswith(f"in raw-{store.get('raw').id[:12]}: {gone['id']}: kept")
    assert cli.main(["corpus", "why", gone["id"], "--json", *place]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["state"], data["before"][0]["state"]) == ("dropped", "kept")
    assert cli.main(["corpus", "token", "0:3", *place]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("row 0, token 3: ")
    assert len(others) == 3
    assert cli.main(["corpus", "token", "0:3", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out)["before"][0]["id"].startswith("web:")
    assert cli.main(["corpus", "funnel", *place]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert told[0] == ["Funnel:"]
    assert [line[0] for line in told[2:]] == ["reading", "near-duplicates"]
    assert int(told[3][2]) == json.loads((store.get("clean").path / "summary.json").read_text())["train"][
        "documents"
    ] + sum(1 for _ in corpus.texts(store.get("clean").path / "heldout"))
    assert cli.main(["corpus", "funnel", "clean", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out)["operators"][0]["operator"] == "near-duplicates"
    for wrong, message in (
        (["funnel", "raw"], "raw is no corpus of a chain of operators"),
        (["token", "3"], "no place of a token: '3'. Write ROW:PLACE"),
        (["token", "9999:0"], "there is no token 0 in row 9999"),
        (["token", "0:1", "--in", "raw"], "raw has no rows: it is corpus"),
        (["why", "web:1", "--in", "rows"], "rows is no corpus but tokens"),
        (["why"], "nothing is asked about"),
        (["whence", "web:1"], "no such question: 'whence'"),
    ):
        assert cli.main(["corpus", *wrong, *place]) == 2
        assert message in capsys.readouterr().err


def test_every_corpus_is_asked_once_where_nobody_knows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the start of a walk and stands on the way of others."""
    asked: list[str] = []

    def nobody(folder: Path, document: str) -> None:
        asked.append(folder.name.partition("-")[0])

    monkeypatch.setattr(ways, "asked", nobody)
    with pytest.raises(ShunterError, match=r"no document 'web:60'"):
        became(store, "web:60")
    assert sorted(asked) == ["clean", "mixture", "raw"]


def test_of_other_texts_nothing_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are the most of a corpus: the column is read of a row group that has the document alone."""
    read = why.pq.ParquetFile.read_row_group
    columns: list[object] = []

    def spied(file: object, group: int, columns_: object = None, **rest: object) -> object:
        columns.append(rest.get("columns", columns_))
        return read(file, group, columns=rest.get("columns", columns_))

    monkeypatch.setattr(why.pq.ParquetFile, "read_row_group", spied)
    folder = store.get("clean").path
    gone = lines(folder / "dropped.jsonl")[0]["id"]
    assert why.why(folder, gone)["state"] == "dropped"
    assert columns
    assert all(each == ["id"] for each in columns)
    kept = next(iter(corpus.texts(folder / "train"))).id
    columns.clear()
    assert why.why(folder, kept)["state"] == "kept"
    assert columns.count(None) == 1
    assert np.all([each in (["id"], None) for each in columns])


SITES = """
version: 1
name: sites
seed: 0
jobs:
  other: {kind: curate, sources: [{name: web, path: other.jsonl}], heldout: 0.1, min_chars: 1}
  raw: {kind: curate, sources: [{name: web, path: web.jsonl, url: url}], heldout: 0.1, min_chars: 30,
        operators: [{kind: exact-duplicates}], how: {workers: 1}}
  sites: {kind: by-site, corpus: raw, chars: 900}
  mixture: {kind: mix, corpora: [sites], budget: 100000}
  changed: {kind: curate, corpora: [sites], how: {workers: 1},
            operators: [{kind: edit-rules, strings: ["^[0-9]+"]}]}
  tokenizer: {kind: tokenizer, corpus: other, vocab_size: 300}
  rows: {kind: tokens, corpus: mixture, tokenizer: tokenizer, row_length: 64}
  edited: {kind: tokens, corpus: changed, tokenizer: tokenizer, row_length: 64}
"""


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Documents of six sites, joined; the tokenizer has learnt from others with the same ids."""
    folder = tmp_path_factory.mktemp("sites")
    for name, seed in (("web", 5), ("other", 6)):
        records = [
            {"text": f"{n} {text}", "url": f"https://{n % 6}.example/{n}"}
            for n, text in enumerate(texts_of(seed, 60))
        ]
        records += [{"text": "short", "url": ""}] if name == "web" else []
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "sites.yaml").write_text(SITES)
    assert cli.main(["run", str(folder / "sites.yaml"), "--store", str(folder / "store")]) == 0
    return Store(folder / "store")


def test_a_token_of_a_joined_text_is_of_the_part_that_has_it(
    joined: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the token says stands where it is said to stand, in the document that is upstream."""
    made = joined.get("rows")
    rows = TokenRows(made.path / "train")
    raw = {each.id: each.text for each in corpus.texts(joined.get("raw").path / "train")}
    others = set()
    for row in range(0, rows.num_rows, 5):
        for number in np.flatnonzero(rows.rows(np.array([row])).segments[0] >= 0).tolist()[::20]:
            found, told = token(joined, made, "train", row, number)
            place = told[1].place
            if place is None:
                assert told[1].told["parts"] == [found.document]
                continue
            assert place.document is not None
            assert [each.corpus.name for each in told] == ["mixture", "sites", "raw"]
            assert [each.told["id"] for each in told] == [found.document] * 2 + [place.document]
            low, high = place.chars
            said = raw[place.document][low:high]
            assert said in found.text
            others |= {place.document} - {found.document}
            last = row, number
    assert len(others) > 5
    text = ["corpus", "token", f"{last[0]}:{last[1]}", "--in", "rows", "--store", str(joined.path)]
    assert cli.main(text) == 0
    assert f"; the token is characters {low} to {high} of {place.document}" in capsys.readouterr().out
    assert cli.main([*text, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["before"][1]["token"]["document"] == data["before"][2]["id"]


def test_of_a_joined_text_that_was_changed_all_parts_are_told(joined: Store) -> None:
    made = joined.get("edited")
    _, told = token(joined, made, "train", 0, 5)
    assert [each.corpus.name for each in told[:2]] == ["changed", "sites"]
    place = told[1].place
    assert place is not None
    assert place.document is None
    assert [each.told["id"] for each in told[2:]] == told[1].told["parts"]
    assert {each.corpus.name for each in told[2:]} == {"raw"}


def test_what_a_job_only_looks_at_tells_of_no_document(
    joined: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer's corpus has ids of its own; and an answer of another corpus than the newest names it."""
    place = ["--store", str(joined.path)]
    assert "other" not in {each.corpus.name for each in became(joined, "web:3", joined.get("raw"))}
    _, told = token(joined, joined.get("rows"), "train", 0, 5)
    assert "other" not in {each.corpus.name for each in told}
    assert cli.main(["corpus", "why", "web:0", *place]) == 0
    assert all(line.startswith("in ") for line in capsys.readouterr().out.splitlines())
    assert cli.main(["corpus", "why", "web:60", *place]) == 0
    assert capsys.readouterr().out.startswith(f"in {joined.get('raw').path.name}: web:60: dropped")
    only = joined.get("other")
    assert cli.main(["corpus", "why", "web:0", "--in", only.path.name, *place]) == 0
    assert capsys.readouterr().out.startswith("web:0: ")


@given(st.lists(st.text("ab", max_size=5), min_size=1, max_size=6), st.data())
def test_within(texts: list[str], data: st.DataObject) -> None:
    """Characters of the joined text are those of the part, what stands between aside."""
    whole = BETWEEN.join(texts)
    low = data.draw(st.integers(0, len(whole)))
    high = data.draw(st.integers(low, min(low + 3, len(whole))))
    names = [str(n) for n in range(len(texts))]
    place = within(names, [len(text) for text in texts], (low, high))
    assert place.document is not None
    begin, end = place.chars
    said = texts[int(place.document)][begin:end]
    assert 0 <= begin <= end
    assert whole[low:high].startswith(said)
    assert len(BETWEEN.join(texts[: int(place.document) + 1])) + len(BETWEEN) > low
