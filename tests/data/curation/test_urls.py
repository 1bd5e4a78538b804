"""Addresses on lists: each kind of list, what it must not catch, and its file missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shunter.config.errors import ShunterError
from shunter.data.curation.pages import Pages
from shunter.data.curation.urls import REASONS, UrlRules

LISTS = {
    "domains": "Bad.example  # a comment\n\nworse.co.uk\n",
    "urls": "https://www.fine.example/bad/page/\nfine.example/all/*\n",
    "words": "casino\n",
    "soft_words": "free\nwin\nlucky\n",
    "parts": "bet-now\n",
    "allow": "good.bad.example\n",
}


@pytest.fixture
def rules(tmp_path: Path) -> UrlRules:
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    return UrlRules(kind="url-rules", **{name: [name] for name in LISTS}).rooted(tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://bad.example/", "domain"),
        ("https://a.b.BAD.example:8080/x", "domain"),
        ("https://notbad.example/", None),
        ("https://x.good.bad.example/casino", None),
        ("bad.example", "domain"),
        ("http://worse.co.uk", "domain"),
        ("http://co.uk", None),
        ("http://fine.example/bad/page#there", "address"),
        ("http://fine.example/bad/page/more", None),
        ("http://fine.example/all/of/it", "address"),
        ("http://ok.example/casino-royale", "word"),
        ("http://ok.example/casinos", None),
        ("http://ok.example/free", None),
        ("http://ok.example/free/free", None),
        ("http://ok.example/free?win", "words"),
        ("http://ok.example/lets.bet/now", "part of a word"),
        ("", None),
        ("http://[broken", None),
    ],
)
def test_verdicts(rules: UrlRules, url: str, reason: str | None) -> None:
    verdicts = rules.judge_with(Pages(["text"]), {"url": np.array([url], np.str_)})
    found = int(verdicts.reason[0])
    assert (REASONS[found] if found >= 0 else None) == reason


def test_what_has_no_address(rules: UrlRules, tmp_path: Path) -> None:
    needed = rules.model_copy(update={"need_url": True})
    verdicts = needed.judge_with(Pages(["text"]), {"url": np.array([""], np.str_)})
    assert REASONS[int(verdicts.reason[0])] == "no address"
    with pytest.raises(ShunterError, match="url: FIELD"):
        rules.judge_with(Pages(["text"]), {})
    (tmp_path / "words").unlink()
    gone = rules.model_copy(update={"soft": 3})  # other options: lists are read again
    with pytest.raises(ShunterError, match="cannot be read"):
        gone.judge_with(Pages(["text"]), {"url": np.array(["http://a"], np.str_)})
