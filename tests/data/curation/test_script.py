# ruff: noqa: RUF001 (letters of other scripts are the point)
"""Scripts of texts whose letters are known; shares are exact, whatever else is in the batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.curation.pages import Pages
from shunter.data.curation.script import CODES, NONE, Script, scripts

TEXTS = {
    "Latn": "A small sentence with 3 numbers: 1, 2, 3!",
    "Cyrl": "Все люди рождаются свободными",
    "Arab": "يولد جميع الناس أحراراً",
    "Deva": "सभी मनुष्यों को गौरव और अधिकारों",
    "Jpan": "すべての人間は、生まれながらにして自由である",
    "Hani": "人人生而自由在尊嚴和權利上一律平等",
    "Hang": "모든 인간은 태어날 때부터 자유로우며",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระ",
    "Grek": "Όλοι οι άνθρωποι γεννιούνται",
    NONE: "12345 ... !!",
}


def test_known_scripts() -> None:
    best, share = scripts(Pages(list(TEXTS.values())))
    assert [CODES[place] for place in best.tolist()] == list(TEXTS)
    assert share[:-1].min() == 1
    assert share[-1] == 0
    assert [CODES[scripts(Pages([text]))[0][0]] for text in TEXTS.values()] == list(TEXTS)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6))
def test_shares_are_of_letters(counts: list[tuple[int, int]]) -> None:
    texts = [f"{'ж ' * cyrillic}12 {'z' * latin}" for cyrillic, latin in counts]
    best, share = scripts(Pages(texts))
    for place, (cyrillic, latin) in enumerate(counts):
        most = max(cyrillic, latin)
        assert share[place] == pytest.approx(most / max(cyrillic + latin, 1))
        if cyrillic != latin:
            assert CODES[best[place]] == ("Cyrl" if cyrillic > latin else "Latn")


def test_what_is_not_wanted_leaves() -> None:
    texts = [TEXTS["Latn"], TEXTS["Cyrl"], "half половина"]
    verdicts = Script(keep=["Latn"], min_share=0.6).judge_with(Pages(texts), {})
    assert verdicts.reason.tolist() == [-1, 0, 0]
    verdicts = Script(min_share=0.7).judge_with(Pages(texts), {})
    assert verdicts.reason.tolist() == [-1, -1, 1]
    assert verdicts.value[2] == pytest.approx(8 / 12)
    assert verdicts.facts["script"].tolist() == ["Latn", "Cyrl", "Cyrl"]
    assert Script().judge_with(Pages([]), {}).reason.tolist() == []
