"""What an address on the web names."""

from __future__ import annotations

from urllib.parse import urlsplit


def hostname(url: str) -> str:
    """The host of an address in lower case, without the root's point, also of one without a scheme; "" for
    what is no address."""
    try:
        return (urlsplit(url if "://" in url else f"//{url}").hostname or "").rstrip(".")
    except ValueError:
        return ""
