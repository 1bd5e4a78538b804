"""Shares are exact, ties stable, no cut of the corpus matters; the classifier tells two kinds apart."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.curation.pages import Pages
from shunter.data.curation.quality import Classifier, ranking
from shunter.data.curation.ranked import Ranked


class Number(Ranked):
    """Its score is the number that a text is."""

    kind: Literal["number"] = "number"
    column: ClassVar[str] = "number"

    def scores(self, pages: Pages) -> np.ndarray:
        return np.array([float(text or "nan") for text in pages.texts])


class Badness(Number):
    low_is_good: ClassVar[bool] = True


def judged(
    operator: Ranked, texts: list[str], languages: list[str] | None = None
) -> tuple[list[int], list[str]]:
    """Reasons and parts."""
    pages = Pages(texts)
    facts = {"language": np.array(languages)} if languages else {}
    settled = operator.settle({**operator.keys_with(pages, facts), "number": np.arange(len(texts))})
    verdicts = operator.judge_settled(pages, settled)
    return verdicts.reason.tolist(), verdicts.facts["number_part"].tolist()


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40), st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.booleans()
)
def test_the_share_is_exact_and_ties_go_by_place(values: list[int], share: float, low: bool) -> None:
    operator = (Badness if low else Number)(share=share)
    reasons, _ = judged(operator, [str(value) for value in values])
    order = sorted(range(len(values)), key=lambda n: values[n] if low else -values[n])
    stay = set(order[: int(share * len(values) + 1e-9)])
    assert {n for n, reason in enumerate(reasons) if reason < 0} == stay


def test_each_language_has_its_own_share_and_thirds() -> None:
    values = ["1", "2", "3", "10", "20", "30"]
    languages = ["aa"] * 3 + ["bb"] * 3
    reasons, parts = judged(Badness(share=0.34), values, languages)
    assert reasons == [-1, 1, 1, -1, 1, 1]
    assert parts == ["head", "middle", "tail"] * 2
    assert judged(Badness(share=0.34, by_language=False), values, languages)[0] == [-1, -1, 1, 1, 1, 1]


def test_limits_and_texts_without_a_score() -> None:
    assert judged(Badness(limit=2), ["1", "2", "3", ""])[0] == [-1, -1, 0, 2]
    assert judged(Number(limit=2, share=0.5), ["1", "2", "3", ""])[0] == [0, -1, -1, 2]
    assert judged(Number(share=1), [])[0] == []


def kinds(draw: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
    """Texts over the same words in two mixtures."""
    names = [f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(300)]
    shares = draw.dirichlet(np.full(300, 0.3), 2)
    wanted = np.arange(count) % 3 == 0
    return [" ".join(draw.choice(names, 60, p=shares[int(w)])) for w in wanted], wanted


def test_it_learns_keeps_and_repeats(tmp_path: Path) -> None:
    texts, wanted = kinds(np.random.default_rng(0), 240)
    model = Classifier.train(texts[:180], wanted[:180], bits=14)
    scores = model.scores(Pages(texts[180:]))
    assert ((scores > 0.5) == wanted[180:]).mean() > 0.95
    assert ranking(scores, wanted[180:]) > 0.98
    model.save(tmp_path)
    again = Classifier.load(tmp_path).scores(Pages(texts[180:]))
    assert np.array_equal(again, scores)
    same = Classifier.train(texts[:180], wanted[:180], bits=14)
    assert np.array_equal(same.weights, model.weights)
    alone = np.concatenate([model.scores(Pages([text])) for text in texts[180:]])
    assert np.array_equal(alone, scores)
    assert np.isnan(model.scores(Pages(["", "?!"]))).all()


def test_one_kind_alone_teaches_nothing(tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="both kinds"):
        Classifier.train(["a", "b"], np.ones(2, bool))
    with pytest.raises(ShunterError, match="kind: classifier"):
        Classifier.load(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20))
def test_ranking_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores, wanted = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    if wanted.all() or not wanted.any():
        return
    wins = [(a > b) + (a == b) / 2 for a in scores[wanted] for b in scores[~wanted]]
    assert ranking(scores, wanted) == pytest.approx(np.mean(wins))
