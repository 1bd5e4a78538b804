"""What FineWeb2 fits to each language: cuts, limits, stopwords, own words, copies; and the language model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.curation import chain, precision, rehydration, thresholds
from shunter.data.curation.gopher import GopherQuality, GopherRepetition
from shunter.data.curation.language import ConfidenceCut, Language, LanguageModel
from shunter.data.curation.operators import Filter
from shunter.data.curation.pages import Pages
from shunter.data.curation.stopwords import counted, stopwords
from shunter.jobs.languages import held_out

ENGLISH = np.random.default_rng(0).normal(10, 2, 20_000)
OURS = np.random.default_rng(1).normal(30, 5, 20_000)


def test_limits_on_known_distributions() -> None:
    """Normal measures, both tails: what each formula must give is known."""
    for high, limit, steps in ((True, 13.0, 1.5), (False, 7.0, -1.5)):
        share = np.mean(limit < ENGLISH if high else limit > ENGLISH)
        assert thresholds.mean_std(limit, ENGLISH, OURS, high) == pytest.approx(30 + steps * 5, abs=0.2)
        found = thresholds.quantile(limit, ENGLISH, OURS, high)
        assert np.mean(found < OURS if high else found > OURS) == pytest.approx(share, abs=1e-3)
        tail = thresholds.ten_tail(limit, ENGLISH, OURS, high)
        assert np.mean(tail < OURS if high else tail > OURS) == pytest.approx(0.1, abs=1e-3)
        assert tail == pytest.approx(30 + (1.2816 if high else -1.2816) * 5, abs=0.2)
        assert thresholds.median_ratio(limit, ENGLISH, OURS, high) == pytest.approx(limit * 3, rel=0.01)
        assert thresholds.METHODS["english"](limit, ENGLISH, OURS, high) == limit


def test_confidence_cut_and_its_clamps() -> None:
    scores = np.array([0.5, 0.7, 0.8, 0.9, 0.6])
    assert thresholds.confidence_cut(scores) == pytest.approx(0.7 - scores.std())
    assert thresholds.confidence_cut(np.full(9, 0.99)) == 0.9
    assert thresholds.confidence_cut(np.array([0.1, 0.2, 0.9])) == 0.3
    assert thresholds.confidence_cut(np.zeros(0)) == 0.3


def words_of(seed: int, length: int, count: int = 60) -> list[str]:
    """A language: words of about `length` letters."""
    draw = np.random.default_rng(seed)
    letters = [chr(97 + int(c)) for c in draw.permutation(26)[:14]]
    return ["".join(draw.choice(letters, max(1, int(n)))) for n in draw.normal(length, length / 4, count)]


def texts_of(seed: int, length: int, count: int, own: int = 0) -> list[str]:
    """Texts of a language, with frequent and rare words."""
    words = words_of(seed, length)
    draw = np.random.default_rng(seed * 1000 + own)
    weights = 1 / np.arange(1, len(words) + 1)
    return [" ".join(draw.choice(words, 120, p=weights / weights.sum())) + "." for _ in range(count)]


def measured(operator: Filter, *texts: list[str]) -> list[dict[str, np.ndarray]]:
    return [thresholds.measured(operator, each) for each in texts]


def test_measures_are_those_of_all_texts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of(1, 5, 9)
    whole = GopherRepetition().measures(Pages(texts), exact=True)
    monkeypatch.setattr(chain, "BATCH_CHARS", 500)
    found = thresholds.measured(GopherRepetition(), texts)
    assert set(found) == set(whole)
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)


def test_limits_follow_the_language() -> None:
    """English limits drop what has long words; fitted ones do not, and both drop what is odd in each."""
    english, ours = texts_of(1, 5, 40), texts_of(2, 14, 40)
    operator = GopherQuality(min_stopwords=None)
    assert not operator.judge(Pages(ours)).kept.any()
    limits = thresholds.adapt(operator, *measured(operator, english, ours), "mean-std")
    assert set(limits) == {"short words", "long words", "words without letters"}
    assert limits["long words"] is not None
    assert limits["long words"] > 14
    fitted = operator.model_copy(update={"by_language": {"xx": limits}})
    odd = " ".join(["x" * 60] * 100)
    facts = {"language": np.array(["xx"] * 41 + ["yy"] * 2)}
    verdicts = fitted.judge_with(Pages([*ours, odd, ours[0], english[0]]), facts)
    assert verdicts.kept.tolist() == [True] * 40 + [False, False, True]
    assert verdicts.limit[40] == pytest.approx(limits["long words"])


def test_a_limit_that_removes_most_is_turned_off() -> None:
    english, ours = texts_of(1, 5, 30), texts_of(2, 14, 30)
    limits = thresholds.adapt(GopherQuality(), *measured(GopherQuality(), english, ours), "english")
    assert limits["long words"] is None, "the English limit would remove them all"
    operator: Filter = GopherQuality(min_stopwords=None, by_language={"xx": limits})
    assert operator.judge_with(Pages(ours), {"language": np.array(["xx"] * 30)}).kept.all()


def test_at_least_eight_stopwords() -> None:
    counts = Counter({f"w{n}": 1000 - n for n in range(300)})
    assert stopwords(counts) == [f"w{n}" for n in range(8)], "none is as frequent as one in 125"
    many = Counter({f"w{n}": 1 for n in range(20)})
    assert len(stopwords(many)) == 20
    assert stopwords(Counter(a=3, b=1)) == ["a", "b"]
    assert counted(["the end, the 17 ... end."]) == {"the": 2, "end": 2}


def test_stopwords_by_language() -> None:
    text = " ".join(["ka lo mi tu"] * 20)
    operator = GopherQuality(min_mean_word=None)
    assert not operator.judge(Pages([text])).kept.any()
    own = operator.model_copy(update={"stopwords_by_language": {"xx": ["ka", "lo", "zu"]}})
    facts = {"language": np.array(["xx", "yy"])}
    assert own.judge_with(Pages([text, text]), facts).kept.tolist() == [True, False]


def test_own_words_and_when_they_are_wanted() -> None:
    counts = {"a": Counter(own=90, shared=100, rare=1), "b": Counter(own=10, shared=100)}
    assert precision.own_words(counts, frequent=0.0) == {"a": ["own", "rare"], "b": []}
    assert precision.own_words(counts, frequent=0.6)["a"] == []
    texts = ["own word"] * 9 + ["none here"]
    assert precision.contamination(Pages(texts), ["own"]) == pytest.approx(0.1)
    assert not precision.needed(Pages(texts), ["own"]), "a tenth is not above a tenth"
    assert precision.needed(Pages([*texts, "none"]), ["own"])


@pytest.mark.parametrize(("absent", "above", "leave"), [(1, 0.1, 0), (2, 0.1, 2), (1, None, 1), (3, 0.5, 0)])
def test_of_a_clean_language_nothing_leaves(absent: int, above: float | None, leave: int) -> None:
    """Of ten documents of the language that are looked at; those after them and others do not count."""
    texts = ["none here"] * absent + ["own word"] * (10 - absent) + ["nor there"] * 5 + ["another's"] * 20
    facts = {"language": np.array(["a"] * 15 + ["b"] * 20, object)}
    operator = precision.PrecisionFilter(language="a", words=["own"], above=above, sampled=10)
    pages = Pages(texts)
    kept = operator.judge_settled(pages, operator.settle(operator.keys_with(pages, facts))).kept
    assert kept[:10].sum() == 10 - leave
    assert kept[10:15].sum() == (0 if leave else 5)
    assert kept[15:].all()


def test_an_address_saves_a_document() -> None:
    operator = precision.PrecisionFilter(
        language="bar", words=["Servus"], code="bar", names=["Boarisch"], domains=["bayern"]
    )
    urls = ["", "https://x.de/bar/a", "https://bar.wikipedia.org/", "https://a.bayern/x", "http://x.de/barn"]
    urls += ["https://x.de/ein-Boa-risch/", "https://x.de/BAR1", "https://x.de/a.bayern/"]
    facts = {"language": np.array(["bar"] * len(urls)), "url": np.array(urls)}
    kept = operator.judge_with(Pages(["nothing of it"] * len(urls)), facts).kept
    assert kept.tolist() == [False, True, True, True, False, True, True, False]
    assert operator.judge_with(Pages(["Servus beinand"]), {"language": np.array(["bar"])}).kept.all()
    assert operator.judge_with(Pages(["hello"]), {"language": np.array(["eng"])}).kept.all()


@given(
    st.dictionaries(st.integers(1, 60), st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=1),
    st.integers(1, 10),
)
def test_copies_are_never_below_one(sizes: dict[int, tuple[int, float]], most: int) -> None:
    before = {size: count for size, (count, _) in sizes.items()}
    after = {size: int(count * share) for size, (count, share) in sizes.items()}
    table = rehydration.copies(before, after, most)
    assert min(table.values()) >= 1
    assert max(table.values()) <= most
    assert all(rehydration.of(size, table) >= 1 for size in range(70))


def test_copies_follow_what_was_removed() -> None:
    before = {1: 1000, 2: 400, 3: 200, 4: 100, 5: 50, 6: 20}
    removed = {1: 0.7, 2: 0.5, 3: 0.4, 4: 0.3, 5: 0.2, 6: 0.6}
    after = {size: round(count * (1 - removed[size])) for size, count in before.items()}
    table = rehydration.copies(before, after)
    overall = 1 - sum(after.values()) / sum(before.values())
    raw = [max(0.0, 1 + 9 * (overall - r) / (overall - 0.2) - 1) + 1 for r in removed.values()]
    raw[0] = 1.0
    assert table[1] == 1, "more was removed than of all"
    assert table[4] == round(np.mean(raw[1:6]))
    assert table[6] == 1, "the end keeps its own"
    assert rehydration.of(99, table) == 1


def test_smoothing_leaves_the_ends() -> None:
    values = [1.0, 9.0, 2.0, 7.0, 3.0, 8.0]
    found = rehydration.smoothed(values)
    assert (found[0], found[-1]) == (1.0, 8.0)
    assert found[2] == pytest.approx(np.mean(values[:5]))


def test_a_language_model_learns_and_is_sure_where_it_is_right(tmp_path: Path) -> None:
    names = ("aa", "bb", "cc")
    texts, labels = [], []
    for place in range(90):
        number = place % 3
        texts.append(texts_of(number + 1, 5, 1, own=place + 1)[0][: 200 if place % 2 else 60])
        labels.append(names[number])
    model = LanguageModel.train(texts, labels, bits=12)
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    asked = [texts_of(n + 1, 5, 1, own=900 + k)[0][:150] for n in range(3) for k in range(10)]
    sure = again.confidences(asked)
    np.testing.assert_array_equal(sure, model.confidences(asked))
    best = sure.argmax(axis=1)
    assert np.mean(best == np.repeat(np.arange(3), 10)) > 0.9
    alone = np.concatenate([again.confidences([text]) for text in asked])
    np.testing.assert_array_equal(alone, sure)
    operator = Language(model=str(tmp_path), keep=["aa", "bb"], cuts={"bb": 1.1 - 0.1})
    verdicts = operator.judge(Pages(asked))
    assert verdicts.facts["language"].tolist() == [names[n] for n in best]
    assert not verdicts.kept[best == 2].any()
    assert [verdicts.reasons[r] for r in set(verdicts.reason[best == 1].tolist()) - {-1}] <= [
        "unsure of the language"
    ]
    with pytest.raises(ShunterError, match="no language model"):
        LanguageModel.load(tmp_path / "none")


def test_what_is_held_out_is_of_other_documents() -> None:
    """Two languages of many documents in several pieces, one of a single one, one of hardly anything."""
    labels = ["a"] * 30 + ["b"] * 40 + ["c"] * 20 + ["d"] * 3
    origins = [n // 3 for n in range(30)] + [100 + n // 5 for n in range(40)] + [200] * 20 + [300] * 3
    folds = [held_out(labels, origins, fold) for fold in range(5)]
    assert (np.sum(folds, axis=0)[:90] == 1).all()
    assert not np.any([fold[90:] for fold in folds])
    for held in folds:
        origin = np.array(origins)
        assert set(origin[held]) & set(origin[~held]) <= {200}
        single = np.flatnonzero(held[70:90])
        assert (np.diff(single) == 1).all(), "pieces of one document follow each other"


def test_how_much_of_a_document_is_looked_at(tmp_path: Path) -> None:
    """A head in one language above a text in another: the first thousand characters decide, or all."""
    texts = [texts_of(1 + n % 2, 5, 1, own=n + 1)[0] for n in range(40)]
    LanguageModel.train(texts, ["aa", "bb"] * 20, bits=12).save(tmp_path)
    long = " ".join(texts_of(1, 5, 2, own=99)) + " ".join(texts_of(2, 5, 20, own=99))
    assert len(texts_of(1, 5, 2, own=99)[0]) * 2 > 1000
    found = [Language(model=str(tmp_path), seen=seen).judge(Pages([long])) for seen in (1000, 0)]
    assert [verdicts.facts["language"].tolist() for verdicts in found] == [["aa"], ["bb"]]


def test_each_label_has_its_own_cut() -> None:
    scores = np.array([0.95, 0.9, 0.92, 0.2, 0.5, 0.45, 0.4, 0.05])
    facts = {"language": np.array(["a"] * 4 + ["b"] * 4), "language_score": scores}
    operator, pages = ConfidenceCut(), Pages(["x"] * 8)
    settled = operator.settle({**operator.keys_with(pages, facts), "number": np.arange(8)})
    verdicts = operator.judge_settled(pages, settled)
    expected = [thresholds.confidence_cut(scores[:4])] * 4 + [thresholds.confidence_cut(scores[4:])] * 4
    assert settled["cut"].tolist() == expected
    assert verdicts.kept.tolist() == [True, True, True, False, True, True, True, False]
