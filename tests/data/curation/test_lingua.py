"""Labels by lingua: what it says is taken over, and `language: auto` asks it where no model is at hand.

lingua itself stands here only where it is installed; else a stand-in that tells Latin from other letters.
"""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shunter.config.errors import MissingExtra, ShunterError
from shunter.data.curation import language
from shunter.data.curation.language import ConfidenceCut, Language
from shunter.data.curation.pages import Pages
from shunter.jobs import curate
from tests.jobs.conftest import Work, work  # noqa: F401
from tests.jobs.test_curate_chain import CONFIG, lines, write

TEXTS = ["This is a sentence of English words.", "Это предложение на русском языке."]


class Stub:
    """What of lingua is used."""

    def __init__(self, code: str) -> None:
        self.iso_code_639_3 = types.SimpleNamespace(name=code)

    @classmethod
    def all(cls) -> list[Stub]:
        return [Stub("ENG"), Stub("RUS"), Stub("DEU")]

    @classmethod
    def from_languages(cls, *given: Stub) -> Any:
        def told(text: str) -> list[Any]:
            first, other = (0, 1) if text.isascii() else (1, 0)
            by = {each.iso_code_639_3.name: each for each in given}
            return [
                types.SimpleNamespace(language=by[("ENG", "RUS")[place]], value=value)
                for place, value in ((first, 0.9), (other, 0.1))
            ]

        made = types.SimpleNamespace(compute_language_confidence_values=told)
        return types.SimpleNamespace(build=lambda: made)


@pytest.fixture
def lingua(monkeypatch: pytest.MonkeyPatch) -> None:
    language.lingua.cache_clear()
    if find_spec("lingua") is None:
        module: Any = types.ModuleType("lingua")
        module.Language = module.LanguageDetectorBuilder = Stub
        monkeypatch.setitem(sys.modules, "lingua", module)
        monkeypatch.setattr(language, "find_spec", lambda name: 1)


def test_labels_are_those_of_lingua(lingua: None) -> None:
    operator = Language(by="lingua", among=["eng", "rus"], keep=["eng"])
    assert operator.labels() == ["eng", "rus"]
    verdicts = operator.judge_with(Pages(TEXTS), {})
    assert verdicts.facts["language"].tolist() == ["eng", "rus"]
    assert verdicts.facts["language_score"].min() > 0.5
    assert verdicts.reason.tolist() == [-1, 0]
    assert operator.judge_with(Pages([]), {}).reason.tolist() == []
    with pytest.raises(ShunterError, match="lingua does not know 'xx'"):
        Language(by="lingua", among=["eng", "xx"]).labels()
    with pytest.raises(ShunterError, match="two languages at least"):
        Language(by="lingua", among=["eng"]).labels()


def test_without_it_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"shunter\[languages\]"):
        Language(by="lingua").ready()


def test_auto_labels_and_cuts_first(tmp_path: Path, work: Work, lingua: None) -> None:  # noqa: F811
    sources = CONFIG["sources"]

    def chain(**config: Any) -> list[str]:
        return [each.name for each in curate.CurateConfig(kind="curate", sources=sources, **config).chain]

    fineweb2 = chain(language="auto", preset="fineweb2")
    assert fineweb2 == chain(languages="l", preset="fineweb2")
    assert fineweb2[:2] == ["language", "confidence-cut"]
    assert chain(language="auto", preset="gopher")[:3] == ["language", "confidence-cut", "gopher-quality"]
    own = curate.CurateConfig(kind="curate", sources=sources, language="auto", languages="l").chain
    assert isinstance(own[0], Language)
    assert isinstance(own[1], ConfidenceCut)
    assert own[0].by == "own"
    with pytest.raises(ValueError, match="labels documents already"):
        curate.CurateConfig(kind="curate", sources=sources, language="auto", operators=[{"kind": "language"}])  # type: ignore[list-item]
    write(tmp_path / "web", [f"{text} {n}" for n in range(10) for text in TEXTS], 1)
    out, _ = work(curate.JOB, {"sources": sources, "language": "auto", "heldout": 0.0, "how": {"workers": 1}})
    assert set(pq.read_table(out / "train").column("language").to_pylist()) == {"eng", "rus"}
    operators = [{"kind": "language", "by": "lingua", "keep": ["eng"]}]
    config = {"sources": sources, "operators": operators, "heldout": 0.0, "how": {"workers": 1}}
    out, metrics = work(curate.JOB, config, name="english")
    assert metrics["documents"] == 10
    assert {record["reason"] for record in lines(out / "dropped.jsonl")} == {"another language"}
    operators[0]["keep"] = ["eng", "xxx"]  # type: ignore[assignment]
    with pytest.raises(ShunterError, match="does not tell 'xxx'"):
        work(curate.JOB, config, name="unknown")
