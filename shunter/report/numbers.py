"""Numbers as people read them. Every quantity is printed with its unit."""

from __future__ import annotations

import math
from datetime import UTC, datetime

MISSING = "\u2013"


def duration(seconds: float | None) -> str:
    """`0.42 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min`, `3 d 04 h`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def size(count: float | None) -> str:
    """Bytes in binary units with three significant digits: `812 B`, `1.21 MiB`."""
    if count is None or not math.isfinite(count):
        return MISSING
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.3g} TiB"


def count(number: float | None) -> str:
    """A whole number with thin groups of three digits (U+202F, which does not break)."""
    return MISSING if number is None else f"{number:,.0f}".replace(",", "\u202f")


def compact(value: float) -> str:
    """An axis label: `0`, `0.003`, `3e-04`, `12.5`, `40k`, `2.5M`."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if magnitude >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    if magnitude < 1e-3:
        return f"{value:.3g}"
    return f"{value:.4g}"


def value(number: float | None, unit: str = "") -> str:
    """A measured value. Fractions are shown as percent, others with four significant digits."""
    if number is None or not math.isfinite(number):
        return MISSING
    if unit == "fraction":
        return f"{100 * number:.1f} %"
    return (f"{number:.3f}" if 0.1 <= abs(number) < 1000 else f"{number:.4g}").replace("-", "\u2212")


def signed(number: float | None, unit: str = "") -> str:
    """A difference, always with its sign; between fractions in percentage points."""
    if number is None or not math.isfinite(number):
        return MISSING
    text = f"{100 * number:+.1f} pp" if unit == "fraction" else f"{number:+.3f}"
    return text.replace("-", "\u2212")


def moment(stamp: float | str | None) -> str:
    """A time (Unix seconds or ISO 8601) as `2026-02-03 14:05 UTC`; what cannot be read is shown as it is."""
    if stamp is None:
        return MISSING
    try:
        if isinstance(stamp, int | float):
            when = datetime.fromtimestamp(stamp, UTC)
        else:
            when = datetime.fromisoformat(stamp)
            when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return str(stamp)
    return when.strftime("%Y-%m-%d %H:%M UTC")


def number(item: object) -> float | None:
    """A finite float, or None for anything else (the log writes `nan` and `inf` as strings)."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        return None
    return float(item) if math.isfinite(item) else None
