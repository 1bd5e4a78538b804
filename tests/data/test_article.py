"""The main text of pages: all of it, and nothing of what stands around it.

Made-up pages show the mechanism, not how good it is on real ones: bench/extract.py does that.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data import article, extraction
from tests.data.webs import page, paragraphs


@given(st.integers(0, 10**6), st.integers(3, 12))
@settings(max_examples=40, deadline=None)
def test_the_article_and_nothing_else(seed: int, count: int) -> None:
    body = paragraphs(np.random.default_rng(seed), count)
    found = article.main_text(page(body, seed=seed).decode())
    assert found.text.split("\n") == body
    assert found.sure == (len(found.text) >= article.LEAST)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_page(text: str) -> None:
    """No words are invented: what comes out stands in the page."""
    html = f"<div><p>{text}</p>"
    for word in article.main_text(html).text.split():
        assert word in html or "&" in html or "<" in text


def test_names_are_doubted_where_most_of_the_prose_is() -> None:
    body = paragraphs(np.random.default_rng(1), 6)
    inside = "".join(f"<p>{text}</p>" for text in body)
    for name in ("sidebar", "body_overlay", "widget"):
        assert article.main_text(f"<div class='{name}'>{inside}</div>").text.split("\n") == body
    assert article.main_text(f"<div class='promo'><p>{body[0]}</p></div>").text == ""


def test_breaks_links_and_headings() -> None:
    one, two, three = paragraphs(np.random.default_rng(2), 3)
    html = (
        f"<article><h1>Title</h1><h2>Lead</h2><p>{one}<br>{two}</p><ul><li><a href=x>Read this too, dear"
        f" friend</a></li></ul><h3>Part</h3><p>{three}</p><h3>More</h3></article>"
    )
    assert article.main_text(html).text.split("\n") == [one, two, "Part", three]


@pytest.mark.parametrize("html", ["", " ", "\0", "<", "<p>", "<!--", "\x00\x01", "<div>" * 3000 + "x" * 900])
def test_no_page_at_all(html: str) -> None:
    article.main_text(html)
    for method in ("fast", "resiliparse", "trafilatura", "trafilatura-precise"):
        assert extraction.extract(html, method).text in ("", html.strip("\0"), "x" * 900)


def test_nested_names_take_no_long_time() -> None:
    """Each level asks how many paragraphs it has: a bound on levels keeps that linear."""
    html = "<div class=sidebar>" * 2000 + "<p>some words</p>" * 2000
    assert not article.main_text(html).sure


@pytest.mark.parametrize("method", ["fast", "resiliparse", "trafilatura", "trafilatura-precise"])
def test_every_extractor(method: str) -> None:
    body = paragraphs(np.random.default_rng(3), 8)
    found = extraction.extract(page(body, seed=2).decode(), method)
    assert not found.error
    assert found.by == method
    assert all(text in found.text for text in body)


def test_where_it_is_not_sure_another_is_asked() -> None:
    text = paragraphs(np.random.default_rng(4), 1)[0][:150]
    found = extraction.extract(f"<html><body><div><p>{text}</p></div></body></html>", "fast")
    assert found.by in ("trafilatura-precise", "fast")
    assert text[:100] in found.text


def test_very_long_pages_are_walked_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text = paragraphs(np.random.default_rng(4), 1)[0][:150]
    monkeypatch.setattr(extraction, "LONG", 100)
    assert extraction.extract(f"<html><body><div><p>{text}</p></div></body></html>", "fast").by == "fast"


def test_what_an_extractor_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import trafilatura

    def broken(*args: object, **options: object) -> str:
        raise RecursionError("deep")

    monkeypatch.setattr(trafilatura, "extract", broken)
    assert extraction.extract("<p>a", "trafilatura").error == "RecursionError: deep"
    assert extraction.extract("<p>a", "fast").error == ""  # its own small text stays
