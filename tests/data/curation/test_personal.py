"""Mail and network addresses are masked; what only looks like one is not."""

from __future__ import annotations

import pytest

from shunter.data.curation.pages import Pages
from shunter.data.curation.personal import MaskPersonal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.example.org.", "write to email@example.com."),
        ("mailto:a@b.de, c@d.co.uk", "mailto:email@example.com, email@example.com"),
        ("the sign @ alone, @name and a@b", "the sign @ alone, @name and a@b"),
        ("at 8.8.8.8 or 1.1.1.1:80", "at 192.0.2.1 or 192.0.2.1:80"),
        ("at 192.168.0.1, 127.0.0.1 and 10.1.2.3", "at 192.168.0.1, 127.0.0.1 and 10.1.2.3"),
        ("version 1.2.3.4.5 and 999.1.1.1", "version 1.2.3.4.5 and 999.1.1.1"),
    ],
)
def test_what_is_masked(text: str, expected: str) -> None:
    verdicts = MaskPersonal().judge(Pages([text, "plain"]))
    assert (verdicts.texts or [text])[0] == expected
    assert verdicts.kept.all()
    assert bool(verdicts.counts) == (text != expected)


def test_each_can_be_left_alone() -> None:
    text = "a@b.de from 8.8.8.8"
    assert (MaskPersonal(mail=None).judge(Pages([text])).texts or [""])[0] == "a@b.de from 192.0.2.1"
    assert (MaskPersonal(address=None).judge(Pages([text])).texts or [""])[
        0
    ] == "email@example.com from 8.8.8.8"
