"""The filter of system calls, word by word: what it says of each number and argument, on each machine.

That the kernel does what a filter says is not shown here; test_outlive and test_sandbox ask it about a few.
"""

from __future__ import annotations

import pytest

from shunter.post.sandbox import calls
from shunter.post.sandbox.calls import ABSENT, ALLOW, DENY, KILL, NO_FAMILY, X32


def said(
    machine: str, number: int, first: int = 0, second: int = 1, third: int = 0, audit: int | None = None
) -> int:
    """What the filter gives for a call: it is interpreted as linux/Documentation/networking/filter says."""
    words = calls.words(machine)
    seen = {
        calls.AUDIT: calls.REFUSED[machine][0] if audit is None else audit,
        calls.NUMBER: number,
    }
    for place, value in ((calls.FIRST, first), (calls.SECOND, second), (calls.THIRD, third)):
        seen |= {place: value & 0xFFFFFFFF, place + 4: value >> 32}
    at, held = 0, 0
    while True:
        code, yes, no, value = words[at]
        if code == 0x06:  # BPF_RET
            return value
        if code == 0x20:  # BPF_LD, a word at a place
            held, at = seen[value], at + 1
        else:
            so = {0x15: held == value, 0x35: held >= value, 0x45: held & value != 0}[code]
            at += 1 + (yes if so else no)


@pytest.fixture(params=sorted(calls.REFUSED))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_refused_call_is_refused_in_both_tables(machine: str) -> None:
    for number in calls.REFUSED[machine][1]:
        assert said(machine, number) == DENY, number
        assert said(machine, X32 | number) == DENY, number
    for number in (0, 1, 60, 63, 93, 231):
        if number not in calls.LOOKED_INTO[machine]:
            assert said(machine, number) == ALLOW
        assert said(machine, X32 | number) == DENY, "no call of the other table is one that we have looked at"


def test_what_is_looked_into(machine: str) -> None:
    prctl, clone, socket, pair, option = calls.LOOKED_INTO[machine]
    assert [said(machine, prctl, option) for option in (1, 2, 15, 22)] == [DENY, ALLOW, ALLOW, ALLOW]
    assert said(machine, prctl, 1 << 32 | 1) == DENY, (
        "the kernel reads an int: the half above is nothing to it"
    )
    assert said(machine, clone, 17) == said(machine, clone, 0x3D0F00) == ALLOW, "fork, and a thread"
    for space in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert said(machine, clone, space | 17) == DENY, hex(space)
    for call in (socket, pair):
        found = [said(machine, call, family) for family in (1, 0, 2, 10, 16, 17, 38, 40)]
        assert found == [ALLOW] + [NO_FAMILY] * 7
        found = [said(machine, call, 1, kind | flags) for kind in (1, 2, 3, 5) for flags in (0, 0x80800)]
        assert found == [ALLOW, ALLOW, DENY, DENY, DENY, DENY, ALLOW, ALLOW], "a stream, datagrams, packets"
        assert said(machine, call, 2, 1) == said(machine, call, 2, 2) == NO_FAMILY
    found = [said(machine, option, 3, 1, third) for third in (2, 7, 1 << 32 | 7, 8, 16, 26, 51)]
    assert found == [ALLOW, DENY, DENY, ALLOW, ALLOW, DENY, DENY]
    assert [said(machine, number) for number in calls.TOLD_ABSENT[machine]] == [ABSENT] * 4


def test_other_machines_calls_end_the_process_and_unknown_machines_are_refused(machine: str) -> None:
    assert said(machine, 1, audit=0x40000003) == KILL, "i386, by int 0x80"
    with pytest.raises(OSError, match="not known"):
        calls.words("vax")


def test_no_jump_leaves_the_filter(machine: str) -> None:
    words = calls.words(machine)
    for at, (_, yes, no, _) in enumerate(words):
        assert max(yes, no) < 256
        assert at + 1 + max(yes, no) <= len(words)
    assert words[-1][0] == 0x06
