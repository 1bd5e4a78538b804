"""Lists of bad words: what a regular expression for each entry finds, and nothing else.

What this cannot show: that a list is a good one. None comes along.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.curation.badwords import BadWords
from shunter.data.curation.pages import Pages
from shunter.jobs import curate
from tests.jobs.conftest import Work
from tests.jobs.conftest import work as work
from tests.jobs.test_curate_chain import lines, write

ENTRIES = ["ab", "b", "a b", "é", "b-a", "aaa", "ß", "a#b"]


def listed(folder: Path, entries: list[str], name: str = "list") -> str:
    path = folder / name
    path.write_text("\n".join(["# a remark", "", *(f"{each} # of it" for each in entries)]), encoding="utf-8")
    return str(path)


def expected(text: str, entries: list[str], anywhere: bool) -> bool:
    """As C4's code has it: an entry with no letter, number or underscore on either side; or anywhere."""
    some = "|".join(map(re.escape, entries))
    return re.search(some if anywhere else rf"(?:\W|^)(?:{some})(?:\W|$)", text.lower()) is not None


@given(
    st.lists(st.text("abAB_ -#\né9ß", max_size=12), min_size=1, max_size=6),
    st.lists(st.sampled_from(ENTRIES), min_size=1, unique=True),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_a_pattern_for_each_entry_finds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], entries: list[str], anywhere: bool
) -> None:
    """Also beside other documents, so that no entry is found across the border of two."""
    path = listed(tmp_path_factory.mktemp("lists"), entries)
    operator = BadWords(lists={"xx": [path]}, anywhere=["xx"] if anywhere else [])
    verdicts = operator.judge(Pages(texts))
    assert (~verdicts.kept).tolist() == [expected(text, entries, anywhere) for text in texts]
    assert verdicts.told is not None
    for text, told, kept in zip(texts, verdicts.told, verdicts.kept.tolist(), strict=True):
        assert kept or (told["word"] in entries and told["word"] in text.lower())


def test_each_language_has_its_list(tmp_path: Path) -> None:
    """Others stay and are counted; in a language without spaces an entry counts inside words. What mC4 allows
    in one language is allowed in no other."""
    lists = {
        "eng": [listed(tmp_path, ["gift", "sm", "性"], "e")],
        "jpn": [listed(tmp_path, ["悪い", "グロ", "sm"], "j")],
    }
    operator = BadWords(lists=lists)
    texts = ["a gift", "a gift", "それは悪いこと", "グローブのsm", "gifts", "x", "it is sm", "a 性 b"]
    facts = {"language": np.array(["eng", "deu", "jpn", "jpn", "eng", "", "eng", "eng"], object)}
    verdicts = operator.judge_with(Pages(texts), facts)
    assert verdicts.kept.tolist() == [False, True, False, True, True, True, False, False]
    assert verdicts.counts == {"in a language without a list": 2}
    assert operator.needs_labels
    assert not operator.model_copy(update={"default": "eng"}).needs_labels


def test_a_share_of_them_is_kept_by_their_text(tmp_path: Path) -> None:
    path = listed(tmp_path, ["bad"])
    texts = [f"text {n} is bad" for n in range(400)]
    some = BadWords(lists={"eng": [path]}, keep=0.3)
    kept = some.judge(Pages(texts)).kept
    assert 0.2 < kept.mean() < 0.4
    assert some.judge(Pages(texts[::-1])).kept.tolist() == kept[::-1].tolist()
    assert not BadWords(lists={"eng": [path]}).judge(Pages(texts)).kept.any()
    assert BadWords(lists={"eng": [path]}, keep=1.0).judge(Pages(texts)).kept.all()


def test_in_a_job(tmp_path: Path, work: Work) -> None:
    """The list is found from the recipe's folder, is part of what the corpus is made of, and is asked for."""
    write(tmp_path / "web", ["a clean text", "a Darn bad text", "darned"], 1)
    operator = {"kind": "bad-words", "lists": {"eng": ["lists/en"]}}
    config = {"sources": [{"name": "web", "path": "web"}], "operators": [operator], "heldout": 0.0}
    with pytest.raises(ShunterError, match=r"bad-words is not there\. C4's list is .*LDNOOBW"):
        work(curate.JOB, config)
    (tmp_path / "lists").mkdir()
    listed(tmp_path / "lists", ["darn"], "en")
    out, _ = work(curate.JOB, config)
    record = {"id": "web:1", "operator": "bad-words", "reason": "a bad word", "word": "darn"}
    assert [{key: each[key] for key in record} for each in lines(out / "dropped.jsonl")] == [record]
    parsed = curate.JOB.Config(kind="curate", **config)
    assert tmp_path / "lists" / "en" in curate.JOB.reads(parsed, tmp_path)  # type: ignore[arg-type]
    listed(tmp_path / "lists", [], "en")
    with pytest.raises(ShunterError, match=r"list of bad words has no entry"):
        BadWords(lists={"eng": [str(tmp_path / "lists" / "en")]}).judge(Pages(["text"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lists": {"eng": []}}, "'eng' has no file"),
        ({"lists": {"eng": ["e"]}, "default": "deu"}, "of which there is no list"),
    ],
)
def test_what_is_no_list_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BadWords(**options)  # type: ignore[arg-type]


def test_several_lists_need_labels() -> None:
    operator = {"kind": "bad-words", "lists": {"eng": ["e"], "deu": ["d"]}}
    config = {"kind": "curate", "sources": [{"name": "web", "path": "web"}], "operators": [operator]}
    with pytest.raises(ValueError, match="lists of several languages and needs language before it"):
        curate.JOB.Config(**config)
