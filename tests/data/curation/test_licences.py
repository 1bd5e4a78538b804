"""The gate of licences: a named rule for all that stays, and restrictions beat permissions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.curation import licences
from shunter.data.curation.licences import REASONS, LicenceTiers, small
from shunter.jobs import curate
from tests.jobs.conftest import Work, work  # noqa: F401

BODY = "Some words of a text that goes on for a while. " * 6
FREE, GATE = f"{BODY}Licensed under CC-BY-SA 4.0.", LicenceTiers(sources={"books": "2a", "made": "2b"})


@pytest.mark.parametrize(
    ("text", "url", "source", "expected"),
    [
        (FREE, "", "", "1"),
        (f"Public domain. {BODY}", "", "", "1"),
        (f"{BODY}Ce texte est dans le domaine public.", "", "", "1"),
        (BODY, "https://www.nasa.gov/x", "", "3"),
        (BODY, "https://eur-lex.europa.eu/x", "", "3"),
        (BODY, "https://notagov.com/nasa.gov", "", "licence unknown"),
        (BODY, "https://europa.eu.evil.org/", "", "licence unknown"),
        (BODY, "http://evil.com?ref=whitehouse.gov", "", "licence unknown"),
        (BODY, "http://evil.com#x.gov", "", "licence unknown"),
        (BODY, "http://user@[broken", "", "licence unknown"),
        (BODY, "nasa.gov:443/x", "", "3"),
        (BODY, "https://nasa.gov./x", "", "3"),
        (BODY, "https://me:word@nasa.gov/x", "", "3"),
        (f"Not in the public domain; copying is forbidden. {BODY}", "", "", "licence unknown"),
        (BODY, "", "books", "2a"),
        (BODY, "", "made", "a tier that is not wanted"),
        (BODY, "", "", "licence unknown"),
        (f"{FREE} All rights reserved.", "", "", "rights reserved"),
        (f"© 2020 Someone. {BODY}", "https://www.nasa.gov/x", "books", "rights reserved"),
        (f"{BODY}{BODY} © inside {BODY}{BODY}", "", "books", "2a"),
        (f"{BODY}{BODY} © inside {BODY}{FREE}", "", "", "rights reserved"),
        (f"{BODY}CC BY-NC 4.0 {BODY}", "", "books", "unfree licence"),
        (f"{BODY}Creative Commons Attribution-NonCommercial {BODY}", "", "", "unfree licence"),
        (f"{BODY}Nicht-kommerziell {BODY}", "", "books", "unfree licence"),
        (f"{BODY}Alle Rechte vorbehalten", "", "books", "rights reserved"),
        (f"{BODY}cc by-nd", "", "", "unfree licence"),
    ],
)
def test_the_gate(text: str, url: str, source: str, expected: str) -> None:
    number, tier, rule = GATE.tier(text, url, source)
    if number < 0 and tier not in GATE.tiers:
        number = REASONS.index("a tier that is not wanted")
    assert (REASONS[number] if number >= 0 else tier) == expected
    assert rule == "none" or ": " in rule


@pytest.mark.parametrize("size", [100, 101])
def test_notices_count_within_the_window(size: int) -> None:
    """The last hundred characters are looked at, not the one before."""
    text = "x" * 300 + "©" + "y" * (size - 1)
    assert (GATE.tier(text, "", "books")[0] == 1) == (size == 100)


def test_every_row_names_its_tier_and_rule(tmp_path: Path, work: Work) -> None:  # noqa: F811
    """Through the job; picking tiers picks exactly their documents."""
    rows = [{"text": f"{n} {FREE}", "url": ""} for n in range(6)]
    rows += [{"text": f"{n} {BODY}", "url": "https://a.gov/"} for n in range(4)]
    rows += [{"text": f"{n} unknown {BODY}", "url": "https://a.com/"} for n in range(5)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "books.jsonl").write_text(json.dumps({"text": f"book {BODY}"}) + "\n")
    found = {}
    for tiers in (["1", "2a", "3"], ["1"], ["3", "2a"]):
        gate = {"kind": "licence-tiers", "sources": {"books": "2a"}, "tiers": tiers}
        config: dict[str, Any] = {"operators": [gate], "heldout": 0.0, "how": {"workers": 1}}
        config["sources"] = [{"path": "web.jsonl", "url": "url"}, {"path": "books.jsonl"}]
        out, _ = work(curate.JOB, config, name="-".join(tiers))
        table = pq.read_table(out / "train").to_pylist()
        assert all(row["tier"] and row["licence_rule"] for row in table)
        found["-".join(tiers)] = [row["tier"] for row in table]
    assert found == {"1-2a-3": ["1"] * 6 + ["3"] * 4 + ["2a"], "1": ["1"] * 6, "3-2a": ["3"] * 4 + ["2a"]}


PIECES = [
    "cc", "by", "-", " ", "nc", "nd", "sa", "0", "creative commons", "CreativeCommons.org/licenses/", "no",
    "non", "commercial", "attribution", "derivatives", " use", "nicht", "kommerziell", "pas d'", "uso ",
    "utilisation commerciale", "não ", "comercial", "non commerciale", "некоммерческая", "非商用", "MIT", ".",
    "not in the ", "public domain", "apache", " licence", "open government", "dominio público", "gemeinfrei",
    "общественное достояние",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.lists(st.booleans(), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_hints_hide_nothing_from_the_patterns(pieces: list[str], upper: list[bool]) -> None:
    """What is looked for first is in every text in which a pattern is found."""
    text = "".join(
        piece.upper() if upper[n % len(upper)] else piece.replace("s", "\u017f")
        for n, piece in enumerate(pieces)
    )
    for pattern, hints in (
        (licences._UNFREE, licences._UNFREE_HINTS),
        (licences._FREE, licences._FREE_HINTS),
    ):
        found, plain = licences._found(pattern, hints, text, small(text)), pattern.search(text)
        assert (found and found.span()) == (plain and plain.span())


def test_each_hint_is_one_of_a_phrase() -> None:
    """Each phrase has but one hint in it, or the only one of its language: none can be left out."""
    unfree = (
        "cc by nc|cc by nd|cc-by-nc|BY-ND|Creative Commons, no commerce: noncommercial|noncommercial use|"
        "non-commercial use|noderivatives|no-derivatives|nicht kommerziell|pas d'utilisation commerciale|"
        "uso no comercial|não comercial|non commerciale|некоммерческое|非商用|非商业|非營利"
    )
    free = (
        "ccby|cc by|cc-by-sa 4.0|CC0|creativecommons.org/publicdomain/|Creative Commons Zero|public domain|"
        "MIT licence|Apache license|BSD license|Open Government Licence|domaine public|dominio público|"
        "domínio público|gemeinfrei|общественное достояние|公有领域"
    )
    for phrases, pattern, hints in (
        (unfree, licences._UNFREE, licences._UNFREE_HINTS),
        (free, licences._FREE, licences._FREE_HINTS),
    ):
        for phrase in phrases.split("|"):
            assert licences._found(pattern, hints, phrase, small(phrase)), phrase


def test_every_letter_that_a_pattern_takes_for_another_is_it_in_small_letters() -> None:
    every = "".join(map(chr, [*range(0x80, 0xD800), *range(0xE000, 0x11000)]))
    for letter in sorted(set("".join((*licences._UNFREE_HINTS, *licences._FREE_HINTS)))):
        for other in re.findall(re.escape(letter), every, re.IGNORECASE):
            assert small(other) == letter
