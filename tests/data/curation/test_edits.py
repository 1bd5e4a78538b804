"""Edit programs delete and nothing else; what an expert deleted becomes a program that does the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation.edits import (
    Call,
    EditRules,
    RemoveLines,
    RemoveString,
    chunks,
    distil,
    execute,
    new_words,
    numbered,
    parse,
    shifted,
    written,
)
from shunter.data.curation.pages import Pages

TEXTS = st.lists(
    st.sampled_from(["ab", "abab", "", "x y", "é\u0301\u2028z", "\r", "same", "same", "日本"]), max_size=9
).map("\n".join)
CALLS = st.lists(
    st.one_of(
        st.builds(RemoveLines, st.integers(0, 9), st.integers(0, 9)),
        st.builds(RemoveString, st.integers(0, 9), st.sampled_from(["ab", "b", "x", "same", "", "é", "\n"])),
    ),
    max_size=6,
)


def subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(character in rest for character in part)


@given(TEXTS, CALLS)
def test_any_program_leaves_a_subsequence(text: str, calls: list[Call]) -> None:
    found = execute(text, calls)
    assert subsequence(found.text, text)
    assert found.executed + found.skipped == len(calls)
    assert found.deleted == len(text) - len(found.text)
    assert execute(text, list(reversed(calls))).text == found.text, "all mean the original's lines"
    assert new_words(text, found.text) >= 0


@given(CALLS)
def test_a_program_is_read_as_it_is_written(calls: list[Call]) -> None:
    assert parse(written(calls)) == (calls, 0)


def test_what_is_no_call_is_skipped() -> None:
    program = """remove_lines(start_line=1, end_line=2)
remove_str(0, "a\\"b")
keep_all()
__import__("os").system("x")
remove_lines(1)
remove_str(0, 'x')
remove_str(0, "\\ud")"""
    calls, skipped = parse(program)
    assert calls == [RemoveLines(1, 2), RemoveString(0, 'a"b')]
    assert skipped == 4


def test_numbers_and_strings_that_do_not_apply() -> None:
    text = "one two two\nthree\nfour"
    calls: list[Call] = [RemoveString(0, "two"), RemoveString(1, "one"), RemoveLines(2, 3), RemoveLines(1, 0)]
    found = execute(text, calls)
    assert (found.text, found.executed, found.skipped) == (text, 0, 4)
    assert execute(text, [RemoveLines(1, 2)]).text == "one two two"
    assert execute(text, [RemoveLines(0, 0)]).text == "three\nfour"
    assert execute(text, [RemoveLines(0, 2)]).text == ""
    assert execute(text, [RemoveString(0, " two two"), RemoveLines(0, 1)]).text == "four"


@given(TEXTS, st.data())
@settings(max_examples=150)
def test_deletions_come_back_as_a_program(text: str, data: st.DataObject) -> None:
    """Delete whole lines and parts of lines at random; where a program is found, it does just that."""
    text = f"{text}\nthe last line of a longer text, which stays"
    lines = text.split("\n")
    gone = data.draw(st.sets(st.integers(0, len(lines) - 2)))
    refined = "\n".join(line for number, line in enumerate(lines) if number not in gone)
    calls, why = distil(text, refined)
    if calls is not None:
        assert execute(text, calls).text == refined
    else:
        assert why in ("hardly anything deleted", "not to be said in a program", "rewritten")


def test_lines_and_strings_are_told_apart() -> None:
    text = "Menu | Home | Log in\nA sentence that stays. Share this on X!\nAnother one.\nFooter\nFooter 2"
    refined = "A sentence that stays.\nAnother one."
    calls, _ = distil(text, refined)
    assert calls == [RemoveString(1, " Share this on X!"), RemoveLines(0, 0), RemoveLines(3, 4)]


@pytest.mark.parametrize(("size", "usable"), [(19, True), (20, False)])
def test_a_rewriting_of_twenty_characters_is_refused(size: int, usable: bool) -> None:
    text = "keep this\n" + "navigation line\n" * 2 + "end of it"
    refined = "keep this\n" + "z" * size + "end of it"
    for changed in (refined, "keep this " + "w" * size + "\nend of it"):
        calls, why = distil(text, changed)
        assert (calls is None) >= (not usable)
        if not usable:
            assert why == "rewritten"


@pytest.mark.parametrize(("size", "usable"), [(9, False), (10, True)])
def test_fewer_than_ten_characters_are_no_edit(size: int, usable: bool) -> None:
    calls, why = distil("first\n" + "x" * size + "last", "first\nlast")
    assert calls == ([RemoveString(1, "x" * size)] if usable else None)
    assert why == ("" if usable else "hardly anything deleted")
    assert distil("same", "same") == ([], "")
    assert written([]) == "keep_all()"


@given(TEXTS, st.integers(1, 12), st.integers(0, 2))
def test_chunks_keep_their_lines(text: str, chars: int, overlap: int) -> None:
    lines, seen = text.split("\n"), set()
    deleted: list[Call] = []
    for begin, part in chunks(text, chars, overlap):
        size = len(part.split("\n"))
        assert part == "\n".join(lines[begin : begin + size])
        seen |= set(range(begin, begin + size))
        deleted += shifted([RemoveLines(0, 0)], begin)
    assert seen == set(range(len(lines)))
    first = {begin for begin, _ in chunks(text, chars, overlap)}
    expected = "\n".join(line for number, line in enumerate(lines) if number not in first)
    assert execute(text, deleted).text == expected, "twice deleted is deleted once"
    assert numbered("a\nb") == "[000] a\n[001] b"


def test_rules_write_programs() -> None:
    operator = EditRules(lines=[r"Menu.*", r"\s*Footer \d+"], strings=[r" ?Share this!"])
    texts = ["Menu a\nText stays. Share this!\nFooter 3", "Menu b\nFooter 4", "untouched"]
    verdicts = operator.judge(Pages(texts))
    assert verdicts.texts is not None
    assert [verdicts.texts[0], verdicts.texts[2]] == ["Text stays.", "untouched"]
    assert verdicts.kept.tolist() == [True, False, True]
    assert verdicts.counts == {"calls": 5}
    with pytest.raises(ValueError, match="no regular expression"):
        EditRules(lines=["("])
