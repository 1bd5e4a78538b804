"""What every text is brought to before anything judges it."""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata
from functools import lru_cache

import numpy as np

# Line ends of other systems, and what ends a page or a line on a printer: words before and after are two.
_FEEDS = re.compile("\r\n|[\r\x0b\x0c\x85]")
# Characters that no text needs: controls but tab and line feed, and the byte order mark.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
# The same without the controls from 0x80 on: they stand for bytes of what was decoded wrongly.
_BROKEN_FEEDS = re.compile("\r\n|[\r\x0b\x0c]")
_BROKEN_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff]")
LATER = re.compile("[\x80-\x9f]")  # those controls
_SPACES = re.compile(r"(?<![ \t])[ \t]+(?=\n|$)")  # begun anywhere in a run, each of its ends would be tried
_BLANKS = re.compile(r"\n{3,}")
MARKS = 100  # combining marks on one letter, from which on they are left in their order


def normalise(text: str, broken: bool = False) -> str:
    """Line feeds; no controls, trailing spaces or runs of blank lines; then canonical composition.

    broken: the controls from 0x80 on stay, for someone who mends the text and calls this again.

    Composition comes last: a control between a letter and its accent keeps them apart. Runs of 100
    combining marks and more are left as they are, as sorting one takes the square of its length.
    """
    feeds, controls = (_BROKEN_FEEDS, _BROKEN_CONTROLS) if broken else (_FEEDS, _CONTROLS)
    text = controls.sub("", feeds.sub("\n", text))
    text = _BLANKS.sub("\n\n", _SPACES.sub("", text)).strip()
    if unicodedata.is_normalized("NFC", text):
        return text
    parts = _parted(text)
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


def _parted(text: str) -> list[str]:
    """The text cut around runs of very many characters that combine; every other part is such a run."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    edges = np.flatnonzero(np.diff(_combining()[codes], prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    long = ends - begins >= MARKS
    cuts = [0, *np.stack([begins[long], ends[long]], axis=1).reshape(-1).tolist(), len(text)]
    return [text[low:high] for low, high in itertools.pairwise(cuts)]


@lru_cache(maxsize=1)
def _combining() -> np.ndarray:
    """bool per code point: it has a place among the marks of a letter."""
    return np.array([unicodedata.combining(chr(code)) > 0 for code in range(sys.maxunicode + 1)])
