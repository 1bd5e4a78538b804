"""Lines that go, against a plain reading of the rules."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation.lines import JunkLines, SymbolLines
from shunter.data.curation.pages import Pages


def without(text: str, symbols: str, instead: str) -> str:
    """As datatrove's SymbolLinesFormatter goes over lines."""
    left, before = [], False
    for line in text.split("\n"):
        gone = line.strip() != "" and all(letter in symbols or letter == " " for letter in line)
        if gone and not before and instead:
            left.append(instead)
        if not gone:
            left.append(line)
        before = gone
    return "\n".join(left)


@given(st.lists(st.text("|a \n-", max_size=15), max_size=5), st.sampled_from(["\n", "", "--"]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_lines_of_symbols(texts: list[str], instead: str, every: bool) -> None:
    verdicts = SymbolLines(instead=instead, symbols=None if every else ["|"]).judge(Pages(texts))
    expected = [without(text, "|-" if every else "|", instead) for text in texts]
    assert (texts if verdicts.texts is None else verdicts.texts) == expected
    assert verdicts.kept.all()


GOOD = "This is one of the lines that are to be left as they are in this text."


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("a heading", "a heading"),
        ("of 1234567 !!", "of 1234567 !!"),  # 2 of 13: just above, 0.154
        ("of the 1234567 !!", "of the 1234567 !!"),
        ("red green blue yellow", ""),
        ("red green blue", "red green blue"),  # too few words to ask for stopwords
        ("red green blue the", "red green blue the"),
        ("look at https://a.org/b?c=1&d=2.", "look at URL."),
        ("it is (see www.a.org/b) there", "it is (see URL) there"),
        ("it is " + base64.b64encode(bytes(range(60))).decode(), "it is BASE64"),
        ("it is " + "ab" * 40, "it is " + "ab" * 40),  # a long word is no data
    ],
)
def test_each_line(line: str, left: str) -> None:
    verdicts = JunkLines(min_chars=0).judge(Pages([f"{GOOD}\n{line}\n{GOOD[:-1]}!"]))
    texts = verdicts.texts or [f"{GOOD}\n{line}\n{GOOD[:-1]}!"]
    special = sum(not letter.isalnum() and letter != " " for letter in line) / len(line) > 0.15
    wanted = "" if special and left == line else left
    assert texts == ["\n".join(part for part in (GOOD, wanted, f"{GOOD[:-1]}!") if part)]


@pytest.mark.parametrize(("times", "stays"), [(5, 5), (6, 0)])
def test_lines_that_stand_again_and_again(times: int, stays: int) -> None:
    """Of each document by itself: another one's lines count nothing."""
    text = "\n".join([GOOD, *["It was in the end."] * times])
    verdicts = JunkLines().judge(Pages([text, text]))
    for left in verdicts.texts or [text, text]:
        assert left.count("It was in the end.") == stays
        assert GOOD in left


def test_what_is_short_then_goes() -> None:
    texts = [GOOD * 2, "x" * 99, GOOD + "\n" + "red green blue yellow " * 9]
    verdicts = JunkLines().judge(Pages(texts))
    assert verdicts.kept.tolist() == [True, False, False]
    assert verdicts.value.tolist()[1:] == [99, len(GOOD)]


@given(st.lists(st.text("the \n!ab/:1", max_size=40), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_neighbour_matters(texts: list[str]) -> None:
    operator = JunkLines(min_chars=3, least=2, max_times=1)
    together = operator.judge(Pages(texts))
    for place, text in enumerate(texts):
        alone = operator.judge(Pages([text]))
        assert alone.kept[0] == together.kept[place]
        assert (alone.texts or [text])[0] == (together.texts or texts)[place]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (SymbolLines, {"symbols": ["|", "||"]}, "'||' is no single character"),
        (SymbolLines, {"symbols": [""]}, "'' is no single character"),
        (JunkLines, {"words": ["of", "The"]}, "'The' is not in small letters"),
    ],
)
def test_what_would_do_nothing_is_refused(
    kind: type[SymbolLines | JunkLines], given: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kind.model_validate(given)
