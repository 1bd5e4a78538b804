"""What every text is brought to: once is enough, in linear time, and equal texts become equal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from shunter.data.cleaning import MARKS, normalise

ODD = st.text(
    st.sampled_from(
        "ab e\u0301\u0323\u0344\u0f73\x00\x0b\x0c\x85\r\n\t\u2028\ufeff\u1100\u1161\u11a8\uac00\u212b"
    )
)


@given(st.text() | ODD)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)


def test_what_is_composed_is_so_after_controls_are_gone() -> None:
    assert normalise("e\x00\u0301") == normalise("e\u0301") == "\u00e9"


def test_ends_of_pages_and_lines_part_words() -> None:
    assert normalise("one\x0ctwo\x0bthree\x85four\r\nfive\rsix") == "one\ntwo\nthree\nfour\nfive\nsix"
    assert normalise("\ufeffa\u0301b  \r\nc\x00\r\rd\n\n\n\ne\t\n") == "\u00e1b\nc\n\nd\n\ne"


def test_heaps_of_marks_and_blanks_take_no_long_time() -> None:
    """Sorting a heap takes the square of its length: of a million marks it would take an hour."""
    heap = "\u0301\u0323" * 500_000
    assert normalise(f"e{heap} e\u0301") == f"e{heap} \u00e9"
    assert normalise("a" + " " * 10**6 + "b") == "a" + " " * 10**6 + "b"


def test_as_many_marks_as_anyone_writes_are_sorted() -> None:
    marks = "\u0301\u0323" * (MARKS // 2 - 1)
    assert normalise("x" + marks) == unicodedata.normalize("NFC", "x" + marks) != "x" + marks
