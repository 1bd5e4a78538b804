"""Ranks whose launcher is told to end before they have begun: its word to them comes as soon as it can."""

from __future__ import annotations

import os
import signal
import time

from tests.launch.small_rank import work

__all__ = ["work"]


def _told() -> None:
    os.kill(os.getppid(), signal.SIGTERM)
    until = time.monotonic() + 5  # one that forgets what it is told waits in vain
    while signal.SIGTERM not in signal.sigpending() and time.monotonic() < until:
        time.sleep(0.01)


os.register_at_fork(after_in_child=_told)
