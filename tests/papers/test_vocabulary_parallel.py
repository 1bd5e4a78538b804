"""The experiment on Vocabulary Parallelism: its simulated part, and the whole in its short form."""

from __future__ import annotations

from pathlib import Path

import pytest

from shunter.papers import harness
from shunter.papers.vocabulary_parallel import SHARES, _simulated


def test_the_simulated_part_has_what_the_claims_ask_for() -> None:
    found = _simulated()
    for share in SHARES:
        rates = {name: found[f"simulated {name}"][f"rate_{share:g}"] for name in ("naive", "interlaced")}
        assert all(rate < found["simulated algorithm 2"][f"rate_{share:g}"] for rate in rates.values())
    assert [found[f"simulated algorithm {n}"]["held"] for n in (1, 2)] == [6, 5]


@pytest.mark.long
def test_in_short(tmp_path: Path) -> None:
    """The machinery works from end to end, and losses are the same; speeds of so few steps say nothing."""
    result = harness.reproduce("vocabulary-parallel", seeds=[0, 1, 2], store=tmp_path, short=True, quiet=True)
    verdicts = {verdict["name"]: verdict["holds"] for verdict in result["claims"]}
    assert verdicts["algorithm 1: the same losses"]
    assert verdicts["algorithm 2: the same losses"]
