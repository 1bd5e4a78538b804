"""Verifiers on answers that differ in what matters and in what does not."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.answers import last_boxed
from shunter.post import verifiers
from shunter.post.sandbox.languages import last_program


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
        ("it is 2", "1/2", 0),
        ("it is 0.5", "1/2", 1),
        (r"so \frac{1}{2}", "1/2", 1),
        ("1/7", "7", 0),
        ("2 1/2", "2.5", 1),
        ("on 1/2/2026", "2026", 1),
        ("5", "1e5", 0),
        ("100,000", "1e5", 1),
        ("7", "007", 1),
        ("1/0", "1", 0),
        ("9" * 5000, "9" * 5000, 0),
        ("1e999", "1e999", 1),
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
        (r"\boxed{\dfrac{1}{2}}", "0.5", 1),
        (r"\boxed{-.25}", r"-\frac14", 1),
        (r"\boxed{\frac{-1}{4}}", "-0.25", 1),
        (r"\boxed{\frac{2}{3}}", "0.67", 0),
        (r"\boxed{1/0}", "0", 0),
        (r"\boxed{x=5}", "5", 1),
        (r"\boxed{5}", "k = 5", 1),
        (r"\boxed{y=5}", "x=5", 0),
        (r"\boxed{2x=10}", "10", 0),
        (r"\boxed{f(x)=5}", "5", 0),
        (r"\boxed{x=y=5}", "5", 0),
        (r"\boxed{5\text{ cm}}", "5", 1),
        (r"\boxed{\frac{1}{2}\,\mathrm{m}^2}", "0.5", 1),
        (r"\boxed{x = 5 \text{ cm}.}", "5", 1),
        (r"\boxed{5}", r"5\text{ cm}", 1),
        (r"\boxed{5\text{ m}}", r"5\text{ cm}", 0),
        (r"\boxed{10\text{ PM}}", r"10\text{ AM}", 0),
        (r"\boxed{5\text{ or }6}", "5", 0),
        (r"\boxed{5 cm}", "5", 1),
        (r"\boxed{12\text{ inches}}", r"12\text{ in}", 1),
        (r"\boxed{9\text{ square meters}}", r"9\text{ m}^2", 1),
        (r"\boxed{9\text{ m}}", r"9\text{ m}^2", 0),
        (r"\boxed{x=1/2}", "0.5", 1),
        (r"\boxed{\frac{1}{-2}}", "-0.5", 1),
        (r"\boxed{2\mathrm{e}}", "2", 0),
        (r"\boxed{3\mathrm{i}}", "3", 0),
        (r"\boxed{3\mathrm{e}^2}", "3", 0),
        (r"\boxed{3\text{x}}", "3", 0),
        (r"\boxed{3m}", "3", 0),
        (r"\boxed{3 h}", "3", 0),
        (r"\boxed{5\text{!}}", "5", 0),
        (r"\boxed{2\text{ million}}", "2", 0),
        (r"\boxed{2}", r"2\text{ million}", 0),
        (r"\boxed{5\text{ or more}}", "5", 0),
        (r"\boxed{5\text{, but it might be 6}}", "5", 0),
        (r"\boxed{5\text{ cents}}", r"\$5", 0),
        (r"\boxed{\text{ even}}", r"\text{ odd}", 0),
        (r"\boxed{\text{even}}", "even", 1),
        (r"\boxed{x\text{ even}}", "x", 0),
        (r"\boxed{\sqrt3}", r"\sqrt{3}", 1),
        (r"\boxed{2\sqrt x}", r"2\sqrt{x}", 1),
        (r"\boxed{\frac1b}", r"\frac{1}{b}", 1),
        (r"\boxed{\frac1{72}}", r"\frac{1}{72}", 1),
        (r"\boxed{2", "2", 0),
        ("2", "2", 0),
    ],
)
def test_boxed(answer: str, target: str, expected: float) -> None:
    assert verifiers.boxed(answer, target) == expected


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("It's 12.", "12", 1),
        ("120", "12", 0),
        ("0.12 or 12,5 or 112", "12", 0),
        ("all of 1, 2, 12", "12", 1),
        ("concatenate", "cat", 0),
        ("a cat!", "cat", 1),
        ("f(x)+g(x)", "(x)+g", 1),
        ("\u6211\u5728\u5317\u4eac\u5de5\u4f5c", "\u5317\u4eac", 1),
        ("", "", 1),
    ],
)
def test_contains(answer: str, target: str, expected: float) -> None:
    assert verifiers.contains(answer, target) == expected


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("3 5", "5 3", 1),
        ("3", "3 5", 2 / 3),
        ("3 3 3", "3 5", 0.4),  # one in common of three and two
        ("The Eiffel Tower.", "eiffel tower", 1),
        ("7", "3 5", 0),
        ("", "3", 0),
        ("3", "", 0),
        (" the", "", 1),
    ],
)
def test_f1_counts_each_word_as_often_as_it_stands_there(answer: str, target: str, expected: float) -> None:
    assert verifiers.f1(answer, target) == pytest.approx(expected)


LOOPS = {
    "boxed": r"\boxed{" * 4000,
    "units": r"\boxed{5" + r" \text{5 " * 4000 + "}" * 4001,
    "gaps": r"\boxed{5" + " " * 40000 + r"\text{m}x}",
    "roots": r"\boxed{" + r"\sqrt" * 8000 + "}",
    "digits": r"\boxed{" + "1" * 40000 + "}",
    "closed": r"\boxed{" * 2000 + "}" * 2000,
    "blocks": "```x\n" * 8000,
    "thousands": "1" + ",111" * 10000 + "1",
    "slashes": "1/" * 10000,
    "lines": "\n" * 40000,
    "spaces": " " * 40000 + "x",
    "titles": "<<" * 20000,
    "fence": "x" + " " * 40000 + "x",
}


@pytest.mark.parametrize("name", LOOPS)
def test_an_answer_that_goes_round_in_circles_takes_no_longer_than_it_is(name: str) -> None:
    """About 30 kB, as of a model that repeats itself: what is quadratic in that takes seconds to minutes."""
    text = LOOPS[name]
    begin = time.process_time()
    for verify in (verifiers.number, verifiers.boxed, verifiers.exact, verifiers.contains, verifiers.f1):
        verify(text, "12")
    last_program(text)
    for constraint in verifiers.CONSTRAINTS.values():
        constraint(text, "3")
    assert time.process_time() - begin < 1.0


def old_last_boxed(text: str) -> str | None:
    """As it is defined: the last that ends, each looked at by itself."""
    found = None
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, begin = 1, match.end()
        for at in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                found = text[begin:at]
                break
    return found


@given(st.lists(st.sampled_from([r"\boxed{", "{", "}", "a", r"\boxed {"])).map("".join))
def test_the_last_box_in_one_pass_is_the_one_by_definition(text: str) -> None:
    assert last_boxed(text) == old_last_boxed(text)


@given(st.lists(st.sampled_from(["```", "```\n", "```py\n", "a\n", "``` \n", "\n", "b"])).map("".join))
def test_the_last_block_in_one_pass_is_the_one_by_definition(text: str) -> None:
    found = re.findall(r"^```[^\n]*\n(.*?)^```\s*$", text, re.DOTALL | re.MULTILINE)
    assert last_program(text) == (found[-1] if found else None)


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
    assert 0 <= verifiers.f1(answer, target) == verifiers.f1(target, answer) <= 1
    assert verifiers.f1(answer, f"The {answer}!") == 1
