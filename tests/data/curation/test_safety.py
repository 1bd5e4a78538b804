"""Lists of words: each limit at its bound, exemptions, and lists that are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shunter.data.curation.pages import Pages
from shunter.data.curation.safety import LISTS, REASONS, KeywordSafety


@pytest.fixture
def safety(tmp_path: Path) -> KeywordSafety:
    for name in LISTS:
        (tmp_path / name).write_text(f"{name}word\n")
    every = {name: [name] for name in LISTS}
    operator = KeywordSafety(kind="keyword-safety", lenient={"wiki": 0.25}, exempt=["books"], **every)  # type: ignore[arg-type]
    return operator.rooted(tmp_path)


def verdict(
    safety: KeywordSafety, source: str = "web", url: str = "", of: int = 100, **hits: int
) -> str | None:
    """The reason of a document of `of` words with so many of each list."""
    words = [f"{name}word" for name, count in hits.items() for _ in range(count)]
    text = " ".join([*words, *["a"] * (of - len(words))])
    facts = {"source": np.array([source]), "url": np.array([url])}
    found = int(safety.model_copy(update={"chars": 10**6}).judge_with(Pages([text]), facts).reason[0])
    return None if found < 0 else REASONS[found]


def test_each_limit_at_its_bound(safety: KeywordSafety) -> None:
    assert verdict(safety, flagged=20) is None
    assert verdict(safety, flagged=21) == "flagged words"
    assert verdict(safety, "wiki", flagged=25) is None
    assert verdict(safety, "wiki", flagged=26) == "flagged words"
    assert verdict(safety, flagged=5, banned=50) is None
    assert verdict(safety, flagged=6, banned=5) is None
    assert verdict(safety, flagged=6, banned=6) == "banned words"
    assert verdict(safety, hate=10) is None
    assert verdict(safety, hate=11) == "hate"
    assert verdict(safety, flagged=6, hate=5) is None
    assert verdict(safety, flagged=6, hate=6) == "flagged words and hate"
    assert verdict(safety, spam=3) is None
    assert verdict(safety, spam=4) == "spam"
    assert verdict(safety, diet=9) is None
    assert verdict(safety, spam=1, diet=1) == "spam"


def test_exemptions(safety: KeywordSafety) -> None:
    assert verdict(safety, "books", flagged=90) is None
    assert verdict(safety, url="https://www.health.gov/page", flagged=90) is None
    assert verdict(safety, url="https://www.healthgov.com/page", flagged=90) == "flagged words"


def test_only_the_beginning_and_any_form_of_a_word(safety: KeywordSafety) -> None:
    facts = {"source": np.array(["web"] * 3)}
    late = "a " * 600 + "hateword " * 100
    texts = [late, "H\u00c2TEWORD! " * 10, ""]
    found = safety.judge_with(Pages(texts), facts)
    assert found.reason.tolist() == [-1, REASONS.index("hate"), -1]
    alone = safety.judge_with(Pages(texts[1:2]), {})
    assert (alone.reason[0], alone.value[0]) == (found.reason[1], found.value[1])
