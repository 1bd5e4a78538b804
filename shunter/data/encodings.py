"""Bytes of unknown origin to text: by mark, declaration or a look at the bytes, and what was done said.

The order follows the WHATWG's (encoding.spec.whatwg.org, section 4.2): a byte order mark beats what was
declared, and Latin-1 and ASCII mean cp1252. Beyond it: bytes that are valid UTF-8 and not ASCII are UTF-8
whatever was declared, for other encodings hardly ever look so.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# In the first kilobytes of a page, as browsers look for it: <meta charset=...>, also inside http-equiv, and
# the declaration of XML.
_DECLARED = re.compile(
    rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})|<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{2,40})",
    re.IGNORECASE,
)
_LOOKED_AT = 4096
_SAME = {  # what a name means on the web
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "big5": "big5hkscs",
}
# Names that are no encodings of text, or that let bytes below 128 mean markup.
_REFUSED = {"utf-7", "unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined", "mbcs", "oem"}


@dataclass(frozen=True)
class Decoded:
    """encoding: by which `text` was read. how: "mark", "utf-8", "declared", "sniffed" or "assumed".
    replaced: characters that stand for bytes which are not in that encoding. declared: "" if it was not."""

    text: str
    encoding: str
    how: str
    replaced: int
    declared: str

    @property
    def trouble(self) -> str:
        """What a report should say; "" when the text was read as it was declared."""
        if self.replaced:
            return f"{self.replaced} places are not {self.encoding}"
        if self.declared and self.how in ("utf-8", "sniffed") and self.encoding != self.declared:
            return f"declared {self.declared}, read as {self.encoding}"
        return ""


def known(name: str | None) -> str:
    """The codec that a name means on the web; "" for none, and for codecs that are not of text."""
    if not name:
        return ""
    try:
        codec = codecs.lookup(name.strip().strip("\"'"))
        "".encode(codec.name)
    except (LookupError, ValueError, UnicodeError):
        return ""
    return "" if codec.name in _REFUSED else _SAME.get(codec.name, codec.name)


def declared_in(raw: bytes) -> str:
    """The encoding that a page's own markup declares, or ""."""
    found = _DECLARED.search(raw, 0, _LOOKED_AT)
    if not found:
        return ""
    name = known((found[1] or found[2]).decode("ascii", "replace"))
    # Markup that could be read as ASCII is not UTF-16.
    return "utf-8" if name.startswith("utf-16") or name.startswith("utf-32") else name


def decode(raw: bytes, declared: str | None = None, markup: bool = False) -> Decoded:
    """The text of bytes. declared: by a header, say; markup: the bytes themselves may declare it."""
    told = known(declared) or (declared_in(raw) if markup else "")
    for mark, name in _MARKS:
        if raw.startswith(mark):
            text = raw[len(mark) :].decode(name, "replace")
            return Decoded(text, name, "mark", text.count("�"), told)
    if not raw.isascii() or told in ("", "utf-8", "cp1252"):
        try:
            text = raw.decode("utf-8")
            return Decoded(text, "utf-8" if not raw.isascii() else told or "utf-8", "utf-8", 0, told)
        except UnicodeDecodeError:
            pass
    tried = [(told, "declared")] if told else []
    tried.append((_sniffed(raw), "sniffed"))
    for name, how in tried:
        try:
            return Decoded(raw.decode(name), name, how, 0, told)
        except (UnicodeDecodeError, LookupError):
            continue
    # Nothing fits. UTF-8 with few faults is still that: its whole characters tell more than single bytes do.
    name = told or "utf-8"
    text = raw.decode(name, "replace")
    bad = text.count("�")
    if name == "utf-8" and bad > 0.1 * sum(map(len, re.findall(rb"[\x80-\xff]+", raw))):
        name = "cp1252"
        text = raw.decode(name, "replace")
        bad = text.count("�")
    return Decoded(text, name, "declared" if told else "assumed", bad, told)


def _sniffed(raw: bytes) -> str:
    """A guess from the bytes: resiliparse's detector (that of browsers) if it is here, else cp1252."""
    try:
        from resiliparse.parse.encoding import detect_encoding
    except ImportError:
        return "cp1252"
    return known(detect_encoding(raw)) or "cp1252"
