"""Mojibake comes back, text that was right stays."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import MissingExtra
from shunter.data.cleaning import normalise
from shunter.data.curation import repair
from shunter.data.curation.pages import Pages
from shunter.data.curation.repair import RepairText, repaired
from shunter.jobs import curate
from tests.data.webs import archive, record
from tests.jobs.conftest import Work, work  # noqa: F401
from tests.jobs.test_curate_chain import write

TEXTS = [
    "Un café près de la gare, déjà fermé.",
    "“It\u2019s late” \u2014 said he… and left",
    "Привет, мир, как дела сегодня",
    "すべての人間は、生まれながらにして自由である",
    "Größe und Maß",
]


def broken(text: str, encoding: str) -> str:
    """UTF-8 read as another encoding, bytes that it lacks as controls."""
    return "".join(
        chr(b) if bytes([b]).decode(encoding, "ignore") == "" else bytes([b]).decode(encoding)
        for b in text.encode()
    )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("times", [1, 2])
def test_there_and_back(text: str, encoding: str, times: int) -> None:
    wrong = text
    for _ in range(times):
        wrong = broken(wrong, encoding)
    assert wrong != text
    mended, count = repaired(f"plain line\n{wrong}")
    assert (mended, count > 0) == (f"plain line\n{text}", True)


def test_cyrillic_encodings_too() -> None:
    assert repaired(broken(TEXTS[2], "cp1251"))[0] == TEXTS[2]


@given(st.text())
def test_what_is_ascii_or_of_one_letter_stays(text: str) -> None:
    plain = text.encode("ascii", "ignore").decode()
    assert repaired(plain) == (plain, 0)


@pytest.mark.parametrize("text", [*TEXTS, "SÃO PAULO É GRANDE", "Ça et là: « À bientôt »", "3 \u00d7 4 ÷ 2"])
def test_right_text_stays(text: str) -> None:
    assert repaired(text) == (text, 0)


def test_the_operator_counts_and_unescapes() -> None:
    texts = ["caf\u00c3\u00a9 &amp; bar", "right", "a &lt; b <b>&eacute;</b>", "AT&T; R&D &nosuch;"]
    verdicts = RepairText(kind="repair-text").judge_with(Pages(texts), {})
    assert verdicts.texts == ["café & bar", "right", "a &lt; b <b>&eacute;</b>", "AT&T; R&D &nosuch;"]
    assert verdicts.facts["repairs"].tolist() == [2, 0, 0, 0]
    assert verdicts.counts == {"repaired places": 1, "entities": 1}
    assert verdicts.kept.all()


def test_ftfy_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"shunter\[repair\]"):
        RepairText(kind="repair-text", by="ftfy").ready()
    RepairText(kind="repair-text").ready()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_a_job_keeps_what_mending_needs(tmp_path: Path, work: Work, text: str, encoding: str) -> None:  # noqa: F811
    """Controls that stand for bytes are there when it looks, and none is there afterwards. `normalise` alone
    takes them away, and with them what could be mended."""
    wrong = f"{broken(text, encoding)} and more, \x01then \x85 an end"
    right = f"{text} and more, then \n an end"
    write(tmp_path / "web", [wrong, "plain \x85 text \x9f here"], 1)
    config = {
        "sources": [{"path": "web/*.jsonl"}], "operators": [{"kind": "repair-text"}], "heldout": 0.0,
        "how": {"workers": 1},
    }  # fmt: skip
    out, _ = work(curate.JOB, config)
    rows = pq.read_table(out / "train").to_pylist()
    assert [row["text"] for row in rows] == [normalise(right), normalise("plain \n text  here")]
    assert rows[0]["repairs"] > 0


def test_pages_too(tmp_path: Path, work: Work) -> None:  # noqa: F811
    text = "The café\u2019s sentence is long enough for a paragraph, it\u2019s said. " * 4
    html = f"<html><body><article><p>{broken(text, 'latin-1')}</p></article></body></html>"
    archive(tmp_path / "web" / "0.warc", [record("https://a.example/", html.encode())])
    config = {"sources": [{"name": "web", "path": "web"}], "operators": [{"kind": "repair-text"}]}
    out, _ = work(curate.JOB, {**config, "heldout": 0.0, "how": {"workers": 1}})
    assert pq.read_table(out / "train").column("text").to_pylist() == [text.strip()]
