"""Edit programs delete and nothing else, by the original's numbers, whatever the calls and their order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.curation.edits import (
    Call,
    Edited,
    EditRules,
    RemoveLines,
    RemoveString,
    chunks,
    execute,
    numbered,
    parse,
    shifted,
    within,
    words,
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
    assert execute(text, [*calls, *calls]).text == found.text, "what is deleted twice is deleted once"
    assert execute(text, found.applied) == Edited(found.text, found.applied, 0, found.deleted)


@given(
    st.lists(st.text("ab _.é\n", max_size=12), max_size=4).map("\n".join),
    st.lists(st.tuples(st.integers(0, 5), st.text("ab _.é", min_size=1, max_size=3)), max_size=5),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=2),
)
def test_with_whole_words_no_word_is_invented(
    text: str, strings: list[tuple[int, str]], lines: list[tuple[int, int]]
) -> None:
    calls: list[Call] = [RemoveString(*each) for each in strings]
    calls += [RemoveLines(*each) for each in lines]
    found = execute(text, calls, whole_words=True)
    assert set(words(found.text)) <= set(words(text))
    assert subsequence(found.text, text)
    assert found.executed + found.skipped == len(calls)
    assert execute(text, list(reversed(calls)), whole_words=True).text == found.text
    # What need not be skipped is not: each call that was executed alone makes no word either.
    assert execute(text, found.applied).text == found.text


def test_a_string_out_of_a_word_is_skipped() -> None:
    text = "one two (ad) three"
    for cut in ("ne t", "wo", "e two (ad) t", "hre"):
        assert execute(text, [RemoveString(0, cut)], whole_words=True).skipped == 1
        assert execute(text, [RemoveString(0, cut)]).executed == 1
    both: list[Call] = [RemoveString(0, " ("), RemoveString(0, "ad"), RemoveString(0, ") ")]
    found = execute(text, both, whole_words=True)
    assert (found.text, found.executed) == (text, 0), "together they would make twothree"
    assert execute(text, [RemoveString(0, " (ad)")], whole_words=True).text == "one two three"


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
    assert numbered("a\nb") == "[0] a\n[1] b"


@given(TEXTS, CALLS, st.integers(1, 12), st.integers(0, 2))
def test_what_chunks_are_told_is_what_the_document_was(
    text: str, calls: list[Call], chars: int, overlap: int
) -> None:
    """A program cut to chunks, each part counted from the document's beginning again, deletes the same."""
    last = text.count("\n")
    calls = [call for call in calls if not isinstance(call, RemoveLines) or call.first <= call.last <= last]
    told: list[Call] = []
    for begin, part in chunks(text, chars, overlap):
        told += shifted(within(calls, begin, part.count("\n") + 1), begin)
    assert execute(text, told).text == execute(text, calls).text


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
