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
        ("john@ex\u00e4mple.de and j\u00f6hn@x.de", "email@example.com and email@example.com"),
        ("at info@example.com- or info@x.com_", "at email@example.com- or email@example.com_"),
        ("o'brien@x.com, a%b@x.org, 'c@d.de'", "email@example.com, email@example.com, 'email@example.com'"),
        ("\u8054\u7cfbjohn@x.com\u8c22\u8c22", "\u8054\u7cfbemail@example.com\u8c22\u8c22"),
        ("mail=a@b-c.de...d@e.fr?", "mail=email@example.com...email@example.com?"),
        ("a@b@c.de and @@x.de and a@-b.de", "a@email@example.com and @@x.de and a@-b.de"),
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


def test_every_address_is_counted_and_masks_are_taken_as_they_are() -> None:
    operator = MaskPersonal(mail=r"\1<mail>", address=r"\0")
    verdicts = operator.judge(Pages(["a@b.de from 8.8.8.8, 9.9.9.9 and 1.1.1.1", "c@d.de"]))
    assert verdicts.texts == [r"\1<mail> from \0, \0 and \0", r"\1<mail>"]
    assert verdicts.counts == {"mail addresses": 2, "network addresses": 3}


def test_a_text_full_of_signs_takes_no_long_time() -> None:
    """Thousands of signs, each with as much before it as a name may have."""
    text = ("ab.c-d'e" * 8 + "@") * 3000 + "@" * 20_000
    assert MaskPersonal().judge(Pages([text])).counts == {}
