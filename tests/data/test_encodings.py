"""Bytes to text: what is declared, what is not, and what is wrong is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.encodings import declared_in, decode, known

TEXTS = {
    "cp1252": "Une école près de Besançon, la façade à côté; façon, garçon, déjà vu, crème brûlée. " * 4,
    "cp1251": "Пусть всегда будет солнце, пусть всегда будет небо, пусть всегда будет мама. " * 4,
    "shift_jis": "すべての人間は、生まれながらにして自由であり、尊厳と権利とについて平等である。" * 4,
    "euc_jp": "すべての人間は、生まれながらにして自由であり、尊厳と権利とについて平等である。" * 4,
    "gb18030": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神互相对待。" * 4,
    "utf-8": "Ünïcode — всё, 全部." * 4,
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_declared_in_any_way(encoding: str) -> None:
    text = f"<html><head><meta charset='{encoding}'></head>{TEXTS[encoding]}"
    assert decode(text.encode(encoding), encoding).text == text
    found = decode(text.encode(encoding), None, markup=True)
    assert (found.text, found.replaced, found.trouble) == (text, 0, "")


@pytest.mark.parametrize("encoding", TEXTS)
def test_undeclared_it_is_seen_from_the_bytes(encoding: str) -> None:
    """With the browsers' detector; it cannot tell encodings apart on a few bytes."""
    assert decode(TEXTS[encoding].encode(encoding)).text == TEXTS[encoding]


@given(st.text(min_size=1).filter(lambda text: not text.isascii()))
def test_utf8_beats_any_declaration(text: str) -> None:
    raw = text.encode("utf-8", "ignore")
    if raw.isascii() or text.startswith("\ufeff"):
        return
    found = decode(raw, "iso-8859-1")
    assert found.text == raw.decode()
    assert found.trouble == "declared cp1252, read as utf-8"


@given(
    st.binary(max_size=300), st.sampled_from([None, "utf-8", "latin-1", "utf-16", "nonsense", "utf-7", "hex"])
)
def test_any_bytes_become_text(raw: bytes, declared: str | None) -> None:
    found = decode(raw, declared, markup=True)
    found.text.encode()  # no half surrogates
    assert found.encoding
    assert found.replaced == 0 or "\ufffd" in found.text


def test_faults_are_counted() -> None:
    found = decode(b"caf\xc3\xa9 " * 50 + b"\xff" + b"caf\xc3\xa9", "utf-8")
    assert found.replaced == 1
    assert found.encoding == "utf-8"
    assert found.trouble == "1 places are not utf-8"
    # Declared UTF-8, but nothing of it is.
    assert decode(TEXTS["cp1252"].encode("cp1252"), "utf-8").text == TEXTS["cp1252"]


def test_names() -> None:
    assert known("ISO-8859-1") == "cp1252"
    assert known(' "utf8" ') == "utf-8"
    assert known("GBK") == "gb18030"
    assert not known("base64")
    assert not known("utf-7")
    assert not known("no such")
    assert not known(None)
    assert declared_in(b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">') == "koi8-r"
    assert declared_in(b"<meta charset=utf-16>") == "utf-8"
