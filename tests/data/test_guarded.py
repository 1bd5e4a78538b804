"""A page that takes too long, or that ends the process which reads it, costs itself and nothing else.

The hostile extractor stands for others' code: a loop in Python, one in C that no signal handler of Python
interrupts, a crash. What this cannot show: that a real page never takes longer.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter.data import guarded
from shunter.data.guarded import Guard

HOSTILE = """
import os, re, signal, sys, time
from shunter.data import extraction, guarded

def hostile(html, method):
    if "loop" in html:
        while True:
            pass
    if "in C" in html:
        re.match("(a+)+b", "a" * 60)
    if "crash" in html:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "once" in html and not os.path.exists(sys.argv[1]):
        open(sys.argv[1], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if "memory" in html:
        bytearray(5 << 30)
    if "sleep" in html:
        time.sleep(0.7)
    print("what foreign code prints")
    return extraction.Extracted(html.upper(), method, "odd" if "odd" in html else "")

extraction.extract = hostile
sys.exit(guarded.main())
"""


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    popen = subprocess.Popen

    def begun(command: list[str], **options: object) -> object:
        return popen(
            [command[0], "-c", HOSTILE, str(tmp_path / "once")], stderr=subprocess.DEVNULL, **options
        )  # type: ignore[call-overload]

    monkeypatch.setattr(guarded.subprocess, "Popen", begun)
    made = Guard()
    yield made
    made.close()


def test_pages_are_answered_one_by_one(guard: Guard) -> None:
    for text in ("some", "", "lone \ud800 surrogate", "zwölf " * 50_000, "odd"):
        found = guard.extract(text, "trafilatura")
        assert (found.text, found.by, found.late) == (text.upper(), "trafilatura", False)
    assert found.error == "odd"


@pytest.mark.parametrize("page", ["loop", "in C"])
def test_a_page_that_takes_too_long_is_ended(guard: Guard, page: str) -> None:
    begin = time.perf_counter()
    found = guard.extract(page, "fast", 0.3)
    assert found.late
    assert (found.text, found.error) == ("", "took more than 0.3 s")
    assert time.perf_counter() - begin < 20
    assert guard.extract("next", "fast", 0.3).text == "NEXT"


def test_time_that_is_only_waited_counts_nothing(guard: Guard) -> None:
    """So no other work of a machine, and no pause of it, makes a page late."""
    assert guard.extract("sleep", "fast", 0.3).text == "SLEEP"


def test_crashes(guard: Guard) -> None:
    assert guard.extract("once", "fast").text == "ONCE", "tried again: it may not have been the page"
    found = guard.extract("crash", "fast")
    assert (found.text, found.error, found.late) == ("", "the extractor was ended by signal 11", False)
    assert guard.extract("memory", "fast").error == "MemoryError: "
    assert guard.extract("next", "fast").text == "NEXT"


def test_a_fault_of_ours_is_no_page_s(monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen

    def begun(command: list[str], **options: object) -> object:
        return popen([command[0], "-c", "raise SystemExit(3)"], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(guarded.subprocess, "Popen", begun)
    with pytest.raises(RuntimeError, match="ended with code 3"):
        Guard().extract("page", "fast")
