"""One zygote for all tests of this folder: to start one takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shunter.config.errors import ShunterError
from shunter.post.sandbox.box import Sandbox


@pytest.fixture(scope="session")
def box() -> Iterator[Sandbox]:
    try:
        made = Sandbox(slots=2)
    except ShunterError as refused:
        pytest.skip(str(refused))
    with made:
        yield made
