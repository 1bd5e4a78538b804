"""Verifiers on answers that differ in what matters and in what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.post import verifiers


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("It is 1,234.", "1234", 1),
        ("First 7, then 8", "8", 1),
        ("8 then 7", "8", 0),
        ("none", "8", 0),
        ("3.50", "3.5", 1),
        ("-4", "4", 0),
        ("#### 12", "work #### 12", 1),
    ],
)
def test_numbers(answer: str, target: str, expected: float) -> None:
    assert verifiers.number(answer, target) == expected


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        (r"so \boxed{\dfrac{1}{2}}", r"\frac{1}{2}", 1),
        (r"\boxed{1/2}", r"\frac{1}{2}", 1),
        (r"\boxed{\frac12}", r"\frac{1}{2}", 1),
        (r"\boxed{3} no, \boxed{4}", "4", 1),
        (r"\boxed{3} no, \boxed{4}", "3", 0),
        (r"\boxed{\left( 1, 2 \right)}", "(1,2)", 1),
        (r"\boxed{12\text{ cm}}", r"\boxed{12cm}", 1),
        (r"\boxed{1,000}", "1000", 1),
        (r"\boxed{2", "2", 0),
        ("2", "2", 0),
    ],
)
def test_boxed(answer: str, target: str, expected: float) -> None:
    assert verifiers.boxed(answer, target) == expected


CASES = {
    "words_at_least": ("3", "one two three", "one two"),
    "words_at_most": ("2", "don't stop", "one two three"),
    "sentences_at_least": ("2", "One. Two!", "One."),
    "sentences_at_most": ("1", "One.", "One. Two!"),
    "paragraphs": ("2", "a\n\nb", "a\nb"),
    "bullets": ("2", "* a\n* b", "* a"),
    "includes": ("Ship", "a ship sails", "a boat"),
    "excludes": ("Ship", "a boat", "a ship sails"),
    "begins_with": ("Dear", " Dear you", "You"),
    "ends_with": ("Bye", "so Bye ", "Bye now"),
    "uppercase": ("", "ABC 1", "Abc"),
    "lowercase": ("", "abc 1", "Abc"),
    "no_commas": ("", "a b", "a, b"),
    "quoted": ("", '"a"', '"'),
    "title": ("", "<<a>> b", "a"),
    "json": ("", '```json\n{"a": 1}\n```', "{a: 1}"),
}


def test_every_constraint_is_kept_and_broken() -> None:
    assert set(CASES) == set(verifiers.CONSTRAINTS)
    for name, (value, kept, broken) in CASES.items():
        assert verifiers.constraints(kept, {name: value}) == 1, name
        assert verifiers.constraints(broken, {name: value}) == 0, name


def test_constraints_count_by_share_and_nothing_keeps_none() -> None:
    assert verifiers.constraints("abc", {"lowercase": "", "words_at_least": "2"}) == 0.5
    assert verifiers.constraints(" ", {"no_commas": ""}) == 0


@given(st.text(), st.text())
def test_no_text_breaks_a_verifier(answer: str, target: str) -> None:
    for verify in (verifiers.number, verifiers.boxed, verifiers.exact, verifiers.contains):
        assert verify(answer, target) in (0.0, 1.0)
    assert verifiers.exact(answer, f" {answer}\n") == 1
