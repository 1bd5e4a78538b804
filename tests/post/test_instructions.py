"""IFEval's instructions and RLVR-IFeval's functions: what meets them, what does not, and what is refused.

What is not shown: that verdicts are the published checkers' on every text; the definitions below are written
out anew from these.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.post import ifeval, ifeval_functions
from shunter.post.config import RewardConfig
from shunter.post.demand import LIBRARY
from shunter.post.instructions import instructions, share
from shunter.post.rewards import Grader, Item, rule
from tests.post.test_verifiers import LOOPS

AT_LEAST, LESS = "at least", "less than"
# name -> values, an answer that meets it, one that does not
IFEVAL: dict[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["C++", "sea"]}, "The SEA knows c++.", "The sea knows C."),
    "keywords:frequency": ({"keyword": "ab", "frequency": 2, "relation": LESS}, "ab", "AB cab"),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "concatenate", "a Cat!"),
    "keywords:letter_frequency": (
        {"letter": "B", "let_frequency": 2, "let_relation": AT_LEAST}, "bB", "ba",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "*** a *** b", "a *** *** b"),
    "length_constraints:number_words": ({"num_words": 3, "relation": AT_LEAST}, "it's so", "two words"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Sea"}, "a\n\n\"sea, b", "a\n\nseaside b",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] [b]", "[a b\n] [c]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "a\np. s. b", "a PS b"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n  - b\n** c", "* a"),
    "detectable_format:constrained_response": ({}, " My answer is no.", "no"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and **b**", "*a* ** **"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2}, "Part 1\na\nPart2\nb", "Part one, Part 2",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<a b>>\nc", "<<  >>\n<b>"),
    "combination:two_responses": ({}, "a\n******\nb", "a****** a"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say a. "}, " say A. b", "b say a."),
    "startend:end_checker": ({"end_phrase": "The End"}, 'a the end"', "the end."),
    "startend:quotation": ({}, ' "a" ', '"'),
    "punctuation:no_comma": ({}, "a; b", "a, b"),
}  # fmt: skip
FUNCTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "verify_keywords": ({"keyword_list": ["Sea"]}, "seaside", "see"),
    "verify_keyword_frequency": ({"word": "a", "N": 2}, "A a an", "a a a"),
    "validate_forbidden_words": ({"forbidden_words": ["cat"]}, "dog", "concatenate"),
    "verify_letter_frequency": ({"letter": "a", "N": 1}, "aA", "aa"),
    "verify_paragraph_count": ({"N": 2}, "a\n* * *\nb", "a\n\nb"),
    "validate_word_constraint": ({"N": 30, "quantifier": "around"}, "a " * 33, "a " * 34),
    "verify_sentence_constraint": ({"N": 2, "quantifier": "at most"}, "See e.g. Dr. No! Go?", "A. B. C."),
    "validate_paragraphs": ({"N": 2, "first_word": "b", "i": 2}, "a\n\nb c", "b\n\na"),
    "verify_postscript": ({"postscript_marker": "P.S."}, "a P.S. b", "a P.S."),
    "validate_placeholders": ({"N": 1}, "[]", "[\n]"),
    "verify_bullet_points": ({"N": 2}, "*a\n - b", "* a"),
    "validate_title": ({}, "<<>>", "<<a\n>>"),
    "validate_choice": ({"options": ["yes", "no"]}, "none", "maybe"),
    "validate_highlighted_sections": ({"N": 2}, "*a* *b*", "*a* *b"),
    "validate_sections": ({"N": 2, "section_splitter": "Part"}, "PART 1 part 2", "Part 1 Part b"),
    "validate_json_format": ({}, "[1]", "```[1]```"),
    "validate_repeat_prompt": ({"original_prompt": "Say"}, "Say a", "say a"),
    "validate_two_responses": ({}, "a******b", "a"),
    "validate_uppercase": ({}, "A 1", "a"),
    "validate_lowercase": ({}, "a 1", "A"),
    "validate_frequency_capital_words": ({"N": 2, "quantifier": "at least"}, "AB, C", "Ab C"),
    "validate_end": ({"end_phrase": "so."}, "and so.", "so. "),
    "validate_quotation": ({}, '"a"', 'a"'),
    "validate_no_commas": ({}, "a", ","),
}


def listed(*wanted: tuple[str, dict[str, Any] | None]) -> str:
    return json.dumps({"instruction_id_list": [n for n, _ in wanted], "kwargs": [v for _, v in wanted]})


def test_every_instruction_of_the_set_is_verified_or_named_as_needing_a_library() -> None:
    """25 each, by the registries of IFEval and of RLVR-IFeval."""
    assert set(IFEVAL) == set(ifeval.KINDS)
    assert set(FUNCTIONS) == set(ifeval_functions.KINDS)
    assert len(ifeval.KINDS) + sum(":" in name for name in LIBRARY) == 25
    assert len(ifeval_functions.KINDS) + sum(":" not in name for name in LIBRARY) == 25


@pytest.mark.parametrize("name", IFEVAL)
def test_what_meets_an_instruction_and_what_does_not(name: str) -> None:
    values, good, bad = IFEVAL[name]
    assert [share(answer, listed((name, values))) for answer in (good, bad)] == [1.0, 0.0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_meets_a_function_and_what_does_not(name: str) -> None:
    values, good, bad = FUNCTIONS[name]
    empty = dict.fromkeys(("N", "letter", "options", "quantifier"), None)  # as the set's tables have them
    target = json.dumps({"func_name": name, **empty, **values})
    assert [share(answer, target) for answer in (good, bad)] == [1.0, 0.0]


def test_the_share_of_several_and_the_forms_in_which_they_come() -> None:
    two = [("punctuation:no_comma", None), ("keywords:existence", {"keywords": ["a"], "num_words": None})]
    names, values = [name for name, _ in two], [value for _, value in two]
    forms = [
        listed(*two),  # type: ignore[arg-type]
        json.dumps({"instruction_id_list": names, "kwargs": json.dumps(values)}),
        json.dumps([{"instruction_id": names, "kwargs": values}]),
        repr([{"instruction_id": names, "kwargs": values}]),  # as Python writes it, with None
        '{"no_commas": "", "includes": "a"}',
    ]
    for form in forms:
        assert [share(answer, form) for answer in ("a", "a,", "b,", " ")] == [1.0, 0.5, 0.0, 0.0], form


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (listed(("keywords:existance", {"keywords": ["a"]})), "Did you mean keywords:existence?"),
        (listed(("language:response_language", {"language": "en"})), "needs a library that tells languages"),
        (listed(("length_constraints:number_sentences", {})), "needs a library that parts sentences"),
        (listed(("keywords:existence", {})), "needs 'keywords'"),
        (listed(("keywords:existence", {"keywords": "a"})), "no list of texts"),
        (
            listed(("keywords:existence", {"keywords": ["a"], "words": 3})),
            "has no 'words'; it takes keywords",
        ),
        (listed(("punctuation:no_comma", {"N": 3})), "it takes nothing"),
        (
            listed(("length_constraints:number_words", {"num_words": 2.5, "relation": LESS})),
            "no whole number",
        ),
        (
            listed(("length_constraints:number_words", {"num_words": 2, "relation": "over"})),
            "not one of less",
        ),
        ('{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "no list of as many"),
        ('{"instruction_id_list": []}', "no list of names"),
        ('{"func_name": "validate_no_comma"}', "Did you mean validate_no_commas?"),
        ('{"func_name": "validate_response_language", "language": "de"}', "needs a library that tells"),
        ('{"words_at_mots": "3"}', "Did you mean words_at_most?"),
        ("[1]", "no list of objects"),
        ("7", "no JSON object"),
        ("seven", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(target: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        instructions(target)


def defined(pattern: str, *flags: re.RegexFlag) -> Callable[[str], int]:
    return lambda text: len(re.findall(pattern, text, *flags))


# As they are defined: patterns of which some take the square of the text's length.
DEFINED: dict[str, tuple[dict[str, Callable[[int], dict[str, Any]]], Callable[[str], int]]] = {
    "bullets": (
        {"detectable_format:number_bullet_lists": lambda n: {"num_bullets": n}},
        lambda t: defined(r"^\s*\*[^\*].*$", re.MULTILINE)(t) + defined(r"^\s*-.*$", re.MULTILINE)(t),
    ),
    "brackets": (
        {
            "detectable_content:number_placeholders": lambda n: {"num_placeholders": n},
            "validate_placeholders": lambda n: {"N": n},
        },
        defined(r"\[.*?\]"),
    ),
    "stars": ({"validate_highlighted_sections": lambda n: {"N": n}}, defined(r"\*(.*?)\*")),
    "parts": (
        {"detectable_format:multiple_sections": lambda n: {"section_spliter": "ab", "num_sections": n}},
        lambda t: len(re.split(r"\s?ab\s?\d+\s?", t)) - 1,
    ),
    "sentences": (
        {"verify_sentence_constraint": lambda n: {"N": n, "quantifier": "at least"}},
        lambda t: len(re.split(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?|!)\s", t)),
    ),
}
SIGNS = ["*", "-", " ", "\n", "[", "]", "a", "b", "ab", "1", ".", "?", "A", "<<", ">>", "\t", "_"]


@pytest.mark.parametrize("name", DEFINED)
@given(data=st.data())
def test_counts_in_one_pass_are_those_by_definition(name: str, data: st.DataObject) -> None:
    kinds, count = DEFINED[name]
    few = ["*", "-", " ", "\n"]  # of which lines of bullets are
    signs = few if name == "bullets" else SIGNS
    text = data.draw(st.lists(st.sampled_from(signs), max_size=30).map("".join))
    known = {**ifeval.KINDS, **ifeval_functions.KINDS}
    exact = count(text)
    for kind, values in kinds.items():
        assert known[kind].check(text, **values(exact))
        assert not known[kind].check(text, **values(exact + 1))  # exactly so many, or at least


@pytest.mark.parametrize("name", [*LOOPS, "brackets", "stars"])
def test_an_answer_that_goes_round_in_circles_takes_no_longer_than_it_is(name: str) -> None:
    text = {**LOOPS, "brackets": "[" * 30_000, "stars": "*a" * 15_000 + "**"}[name]
    begin = time.process_time()
    for wanted, kinds in ((IFEVAL, ifeval.KINDS), (FUNCTIONS, ifeval_functions.KINDS)):
        for kind, (values, _, _) in wanted.items():
            kinds[kind].check(text, **values)
    assert time.process_time() - begin < 1.0


def test_the_reward_reads_them_and_counts_what_it_cannot_read() -> None:
    grader = Grader([(rule(RewardConfig(kind="constraints")), 1.0)])
    good, unknown = listed(("punctuation:no_comma", {})), listed(("punctuation:no_commas", {}))
    graded = grader.grade([Item("q", "a", good), Item("q", "a,", good), Item("q", "a", unknown)])
    assert [one.total for one in graded] == [1.0, 0.0, 0.0]
    assert "Did you mean punctuation:no_comma?" in graded[2].failed[0]
