"""What an expert deleted becomes a program that does the same, or is left out; edits are marked rightly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data import litter
from shunter.data.curation.differences import Marks, difference, distance, distil, new_words, without
from shunter.data.curation.edits import RemoveLines, RemoveString, execute, parse, runs, written

LINES = [
    "ab",
    "abab",
    "",
    "x y",
    "e\u0301\u2028z",
    "\r",
    "same",
    "same",
    "\u65e5\u672c",
    "menu | home\r",
    "one. two (ad).",
]
TEXTS = st.lists(st.sampled_from(LINES), max_size=9).map("\n".join)


@given(TEXTS, st.data())
@settings(max_examples=100)
def test_lines_that_went_come_back_as_a_program(text: str, data: st.DataObject) -> None:
    """Whole lines deleted at random, equal ones too, at either end and all of them: always a program, unless
    hardly anything went."""
    lines = text.split("\n")
    gone = data.draw(st.sets(st.integers(0, len(lines) - 1)))
    refined = "\n".join(line for number, line in enumerate(lines) if number not in gone)
    calls, why = distil(text, refined)
    if calls is None:
        assert why == "hardly anything deleted"
        assert len(text) - len(refined) < 10
    else:
        assert execute(text, calls).text == refined
        assert parse(written(calls)) == (calls, 0)


@given(TEXTS, st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)), max_size=4))
@settings(max_examples=100)
def test_a_program_does_what_the_spans_say(text: str, cuts: list[tuple[int, int]]) -> None:
    """Any spans of characters, over line ends too: where there is a program, it leaves the original less the
    spans that the difference found, and these are what is not in the refined text."""
    refined = without(text, [(at, at + size) for at, size in cuts])
    found = difference(text, refined)
    calls, why = distil(text, refined)
    if calls is None:
        assert why in ("rewritten", "hardly anything deleted", "not to be said in a program")
        return
    assert execute(text, calls).text == without(text, found.deleted)
    if not found.replaced and not found.inserted:
        assert without(text, found.deleted) == refined
        assert execute(text, calls).text == refined
    assert [call.line if isinstance(call, RemoveString) else call.first for call in calls] == sorted(
        call.line if isinstance(call, RemoveString) else call.first for call in calls
    ), "by line, as a model reads"


@given(TEXTS, TEXTS)
def test_a_difference_makes_one_text_of_the_other(a: str, b: str) -> None:
    found = difference(a, b)
    kept = found.kept(len(a))
    assert int(kept.sum()) + found.inserted == len(b)
    rest = iter(b)
    assert all(character in rest for low, high in runs(kept) for character in a[low:high])
    assert (distance(a, b) == 0) == (a == b)
    assert difference(a, a).deleted == []


def test_lines_and_strings_are_told_apart() -> None:
    text = "Menu | Home | Log in\nA sentence that stays. Share this on X!\nAnother one.\nFooter\nFooter 2"
    calls, _ = distil(text, "A sentence that stays.\nAnother one.")
    assert calls == [RemoveLines(0, 0), RemoveString(1, " Share this on X!"), RemoveLines(3, 4)]
    assert distil(text, "")[0] == [RemoveLines(0, 4)]
    # The difference may keep the line feed before a line, or that after it.
    text = "A sentence (Share this)\nBuy now and save!\nAnother one.\nFooter\nFooter 2"
    calls, _ = distil(text, "A sentence\nAnother one.")
    assert calls == [RemoveString(0, " (Share this)"), RemoveLines(1, 1), RemoveLines(3, 4)]


def test_a_string_that_stands_twice_makes_no_program() -> None:
    assert distil("tell me more and more, more", "tell me more and, more") == (
        None,
        "hardly anything deleted",
    )
    found = distil("one [Read more] two [Read more] three\nb", "one two [Read more] three\nb")
    assert found == (None, "not to be said in a program")


@pytest.mark.parametrize(("size", "usable"), [(19, True), (20, False)])
def test_a_rewriting_of_twenty_characters_is_refused(size: int, usable: bool) -> None:
    text = "keep this\n" + "navigation line\n" * 2 + "end of it"
    for put in ("z" * size, "q " * (size // 2) + "q" * (size % 2)):
        inserted = text.replace("keep this\n", "keep this\n" + put)
        assert (distil(text, inserted)[1] == "rewritten") == (not usable)
        replaced = text.replace("keep this", put)
        assert (distil(text, replaced)[1] == "rewritten") == (not usable)
    shorter = ("a" * size) + "\nstays as it is\nthis line is to be deleted"
    assert (distil(shorter, "bcd\nstays as it is")[1] == "rewritten") == (not usable)


def test_an_edit_in_every_line_of_many() -> None:
    lines = [f"Line {number} says something [edit]" for number in range(90)]
    calls, _ = distil("\n".join(lines), "\n".join(line.removesuffix(" [edit]") for line in lines))
    assert calls == [RemoveString(number, " [edit]") for number in range(90)]
    calls, _ = distil("\n".join(lines[:20]), "\n".join(line.removesuffix(" [edit]") for line in lines[5:20]))
    assert calls == [RemoveLines(0, 4), *(RemoveString(number, " [edit]") for number in range(5, 20))]


def test_small_changes_are_left_undone() -> None:
    text = "the first lien\nNavigation | Home | Search\nlast"
    calls, _ = distil(text, "the first line\nlast")
    assert calls == [RemoveLines(1, 1)]
    assert execute(text, calls).text == "the first lien\nlast"
    # One sentence in the place of another is rewriting, though some letters of both are the same.
    other = "Siat be ml the lkng ielp tut arelm gkpd tmduu lugms the."
    assert distil("Akupd ded be with sis pogpk odou euaupdo that uoaltn kgtn.", other)[1] == "rewritten"


@pytest.mark.parametrize(("size", "usable"), [(9, False), (10, True)])
def test_fewer_than_ten_characters_are_no_edit(size: int, usable: bool) -> None:
    calls, why = distil("first\n" + "x" * size + " last", "first\n last")
    assert calls == ([RemoveString(1, "x" * size)] if usable else None)
    assert why == ("" if usable else "hardly anything deleted")
    # In total, not each.
    half = (size + 1) // 2
    calls, _ = distil("x" * half + " a\nb " + "y" * (size - half), " a\nb ")
    assert (calls is not None) == usable
    assert distil("same", "same") == ([], "")
    assert written([]) == "keep_all()"


def test_experts_programs_are_what_was_planted() -> None:
    for made in litter.littered(60, 3):
        assert distil(made.text, made.clean)[0] is not None
        calls, _ = distil(made.text, made.clean)
        assert calls is not None
        assert execute(made.text, calls, whole_words=True).text == made.clean


def test_marks() -> None:
    marks = Marks()
    text, noise = "menu\nsome clean text\nfoot", [(0, 5), (20, 25)]
    marks.add(text, "some clean text", noise, tokens=8)
    assert (marks.span_f1, marks.new_words, marks.improved_share) == (1.0, 0.0, 1.0)
    assert marks.deletion_ratio == 10 / 25
    marks.add(text, "menu\nsome clean text\nfoot", noise, tokens=2)
    assert marks.tokens_written == 5
    assert marks.improved_share == 0.5
    assert marks.span_f1 == pytest.approx(2 / 3)
    marks.add(text, "some other text", noise)
    assert marks.new == 1
    assert marks.new_words == pytest.approx(1000 / 11)
    assert new_words("a b", "") == 0
    alone = Marks()
    alone.add(text, "clean")
    assert (alone.known, alone.planted) == (0, 0), "without the truth nothing is known of it"
