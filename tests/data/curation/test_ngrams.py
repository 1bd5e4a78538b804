"""The model of runs is a distribution, Kneser-Ney's, and prefers what it has learnt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.curation import ngrams
from shunter.data.curation.ngrams import NGramModel
from shunter.data.curation.pages import Pages

texts_ = st.lists(st.lists(st.sampled_from("abcde"), max_size=12).map(" ".join), min_size=1, max_size=9)


LEAST = st.sampled_from([(1,), (1, 1, 2), (2, 3)])


@given(texts_, st.integers(1, 4), LEAST, st.lists(st.sampled_from("abcdez"), max_size=5))
@settings(max_examples=40, deadline=None)
def test_probabilities_sum_to_one(
    texts: list[str], order: int, least: tuple[int, ...], before: list[str]
) -> None:
    """After anything, over the known words and one unknown; rare runs pruned or not."""
    if not any(texts):
        return
    model = NGramModel.train([texts], order, "word", least)
    pages = Pages([" ".join([*before, word]) for word in "abcdeq"])
    logs, first = model.logs(pages)
    chances = np.exp(logs[first[1:] - 1])
    known = [chance for chance, word in zip(chances.tolist(), "abcde", strict=False) if _known(model, word)]
    assert len(known) == model.vocabulary - 1
    assert sum(known) + chances[-1] == pytest.approx(1, abs=1e-5)


def _known(model: NGramModel, word: str) -> bool:
    values, _ = ngrams.tokens(Pages([word]), "word")
    return bool(np.isin(ngrams.Prefix(values).of(np.zeros(1, int), np.ones(1, int)), model.levels[0].runs)[0])


def test_bigrams_by_hand() -> None:
    """Two orders, once more with dictionaries."""
    texts = ["a b a c a b", "b a b c", "c a"]
    model = NGramModel.train([texts], 2, "word", (1,))
    pairs = Counter(pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False))
    heads = Counter[str]()
    for (head, _), count in pairs.items():
        heads[head] += count
    before = Counter(tail for _, tail in pairs)
    before.update({text.split()[0] for text in texts})  # a document's begin is one more

    def discount(counts: Counter) -> float:
        once, twice = (sum(value == n for value in counts.values()) for n in (1, 2))
        return min(max(once / (once + 2 * twice) if once else 0.5, 0.1), 0.9)

    low, high = discount(before), discount(pairs)
    total = sum(before.values())
    rest = 1 - sum(max(count - low, 0) for count in before.values()) / total

    def one(word: str) -> float:
        return max(before[word] - low, 0) / total + rest / 4

    def two(head: str, word: str) -> float:
        mine = [count for (h, _), count in pairs.items() if h == head]
        back = 1 - sum(max(count - high, 0) for count in mine) / heads[head]
        return max(pairs[head, word] - high, 0) / heads[head] + back * one(word)

    logs, _ = model.logs(Pages(["a b c"]))
    assert np.exp(logs) == pytest.approx([one("a"), two("a", "b"), two("b", "c")], rel=1e-5)


@given(texts_, st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_batches_change_nothing(texts: list[str], size: int) -> None:
    if not any(texts):
        return
    whole = NGramModel.train([texts], 3)
    parts = [texts[at : at + size] for at in range(0, len(texts), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "HELD", 5)
        cut = NGramModel.train(parts, 3)
    for one, other in zip(whole.levels, cut.levels, strict=True):
        assert all(
            np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
        )
    together = whole.perplexities(Pages(texts))
    alone = [float(whole.perplexities(Pages([text]))[0]) for text in texts]
    assert np.array_equal(together, alone, equal_nan=True)


@pytest.mark.parametrize("unit", ["word", "character"])
def test_it_knows_its_texts_from_shuffled_ones(tmp_path: Path, unit: ngrams.Unit) -> None:
    draw = np.random.default_rng(0)
    names = ["".join(draw.choice(list("abdeiklmnorstu"), 5)) for _ in range(40)]
    after = {name: draw.choice(names, 3) for name in names}

    def walk(length: int) -> list[str]:
        words = [str(draw.choice(names))]
        while len(words) < length:
            words.append(str(draw.choice(after[words[-1]])))
        return words

    model = NGramModel.train([[" ".join(walk(200)) for _ in range(20)]], 3 if unit == "word" else 6, unit)
    model.save(tmp_path)
    model = NGramModel.load(tmp_path)
    right = [walk(60) for _ in range(10)]
    wrong = [draw.permutation(list("".join(words)) if unit == "character" else words) for words in right]
    joint = "" if unit == "character" else " "
    good = model.perplexities(Pages([" ".join(words) for words in right]))
    bad = model.perplexities(Pages([joint.join(words) for words in wrong]))
    assert good.max() < bad.min()
    assert np.isnan(model.perplexities(Pages(["", "... !"] if unit == "word" else [""]))).all()


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="kind: ngrams"):
        NGramModel.load(tmp_path)
    with pytest.raises(ShunterError, match="words"):
        NGramModel.train([["", "!"]])
