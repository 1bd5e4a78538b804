"""Near-duplicates: the law of buckets, clusters, recall and precision against exact Jaccard."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.curation import minhash
from shunter.data.curation.glyphs import folded
from shunter.data.curation.minhash import NearDuplicates, clusters
from shunter.data.curation.pages import Pages
from shunter.data.curation.room import Room
from tests.data.curation import reference


def name(number: int) -> str:
    return "w" + "".join(chr(97 + int(digit)) for digit in str(number))


def test_folding_takes_diacritics_and_no_letters() -> None:
    """A Hangul syllable decomposes into consonants and vowels, none of which is a diacritic."""
    table = folded()
    assert [chr(table[ord(c)]) for c in "ÀéÑ한국각"] == list("aen한국각")
    korean = [
        "모든 사람은 자유로운 존재로 태어났고 존엄하다",
        "밀던 소름은 지우려은 전재리 토아났구 전움호단",
    ]
    digests = NearDuplicates(words=2).minima(Pages(korean))
    assert not (digests[0] == digests[1]).any()


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_rate_of_collisions_is_the_formula(share: float) -> None:
    """Pairs of sets of known similarity: equal buckets come as s^8, pairs as 1 - (1 - s^8)^14."""
    draw, size, trials = np.random.default_rng(int(100 * share)), 200, 200
    common = round(2 * size * share / (1 + share))
    similarity = common / (2 * size - common)
    texts = []
    for _ in range(trials):
        numbers = draw.choice(10**9, 2 * size - common, replace=False).tolist()
        rest = numbers[common:]
        for own in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            texts.append(" ".join(map(name, numbers[:common] + own)))
    digests, signed = NearDuplicates(words=1).digests(Pages(texts))
    assert signed.all()
    equal = digests[0::2] == digests[1::2]
    rate, pairs = similarity**8, 1 - (1 - similarity**8) ** 14
    # Buckets of a pair hang together a little, through the least values they share no hash in: 5 sigma.
    assert abs(equal.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / equal.size)
    assert abs(equal.any(axis=1).mean() - pairs) < 5 * np.sqrt(max(pairs * (1 - pairs), 1e-3) / trials)


@given(st.lists(st.lists(st.integers(0, 9), min_size=12, max_size=12), min_size=2, max_size=3))
def test_clusters_are_connected_components(columns: list[list[int]]) -> None:
    signed = np.array([number % 5 != 4 for number in range(12)])
    digests = np.array(columns, np.uint64).T
    found = clusters(digests, signed, len(columns), Room())
    root = list(range(12))
    for _ in range(12):
        for column in columns:
            for a, b in itertools.combinations(np.flatnonzero(signed).tolist(), 2):
                if column[a] == column[b]:
                    root[a] = root[b] = min(root[a], root[b])
    assert found.tolist() == root


def test_recall_and_precision_of_pairs() -> None:
    """Copies with words changed at several rates, against exact Jaccard of runs of five folded words."""
    draw = np.random.default_rng(0)
    vocabulary = [name(int(number)) for number in draw.integers(0, 10**6, 3000)]
    texts = []
    for _ in range(40):
        words = draw.choice(vocabulary, 150).tolist()
        texts.append(" ".join(words))
        for rate in (0.005, 0.02, 0.08):
            changed = [str(draw.choice(vocabulary)) if draw.random() < rate else word for word in words]
            texts.append(" ".join(changed).title() + "!")
    pages = Pages(texts)
    digests, _ = NearDuplicates().digests(pages)
    sets = []
    for text in texts:
        words = reference.words(text.lower().replace("!", ""))
        sets.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
    near, found = set(), set()
    expected = 0.0
    for a, b in itertools.combinations(range(len(texts)), 2):
        if a // 4 != b // 4:
            assert not (digests[a] == digests[b]).any(), "texts of different origin share no bucket"
            continue
        similarity = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        expected += 1 - (1 - similarity**8) ** 14
        if similarity >= 0.8:
            near.add((a, b))
        if (digests[a] == digests[b]).any():
            found.add((a, b))
            assert similarity > 0.3
    assert len(near & found) / len(near) > 0.95
    assert abs(len(found) - expected) < 4 * np.sqrt(len(texts)), "as many pairs as the law says"


def test_folding_hides_case_marks_digits_and_accents() -> None:
    pages = Pages(["Café, No. 17: THE end\u0301!", "cafe no 0 the end", "cafe no 99 the ends"])
    folded = pages.folded().words
    hashes = [folded.hashes[folded.first[n] : folded.first[n + 1]].tolist() for n in range(3)]
    assert hashes[0] == hashes[1]
    assert hashes[0][:-1] == hashes[2][:-1]
    assert hashes[0] != hashes[2]


def test_short_documents_are_not_compared() -> None:
    digests, signed = NearDuplicates().digests(Pages(["one two three four", "", "one two three four five"]))
    assert signed.tolist() == [False, False, True]
    assert len(digests) == 3


def test_no_run_is_the_least_of_every_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose hash is 0 would be 0 times any factor: all documents that have it were one cluster."""
    hashes = iter([np.array([0, 7 << 32, 8 << 32], np.uint64), np.array([0, 9 << 32, 5 << 32], np.uint64)])
    monkeypatch.setattr(minhash, "mixed", lambda values: next(hashes))
    texts = ["a b c", "a d e"]
    least = [NearDuplicates(words=1).minima(Pages([text]))[0] for text in texts]
    assert not (least[0] == least[1]).all()
