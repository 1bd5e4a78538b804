"""One zygote for all tests of this folder: to start one takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shunter.post.sandbox.box import Sandbox
from tests.post.sandbox.running import or_skip


@pytest.fixture(scope="session")
def box() -> Iterator[Sandbox]:
    with or_skip():
        made = Sandbox(slots=2)
    with made:
        yield made
