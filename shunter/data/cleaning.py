"""What is done to every text before anything judges it."""

from __future__ import annotations

import re
import unicodedata

# Characters that no text needs: controls but tab and line feed, and the byte order mark.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_SPACES = re.compile(r"(?<![ \t])[ \t]+(?=\n|$)")  # begun anywhere in a run, each of its ends would be tried
_BLANKS = re.compile(r"\n{3,}")


def normalise(text: str) -> str:
    """Canonical composition and line feeds; no controls, trailing spaces or runs of blank lines."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _SPACES.sub("", _CONTROLS.sub("", text))
    return _BLANKS.sub("\n\n", text).strip()
