"""System calls that the kernel refuses to untrusted programs (seccomp). Standard library alone.

Refused, with EPERM: memory that no limit on address space counts; what looks into other processes or changes
the system; sockets of any family but that of this machine (a namespace without network does not close all of
them: AF_VSOCK reaches the host of a virtual machine); and taking away the signal by which a program ends with
the process that watches it.
"""

from __future__ import annotations

import ctypes
import struct

# By the machine's name: its number for auditing; the numbers of prctl, socket, socketpair; and those of
# shmget shmat shmctl semget msgget mq_open memfd_create memfd_secret add_key request_key keyctl ptrace
# process_vm_readv process_vm_writev bpf perf_event_open userfaultfd unshare setns mount io_uring_* (three)
_X86 = "29 30 31 64 68 240 319 447 248 249 250 101 310 311 321 298 323 272 308 165 425 426 427"
_ARM = "194 196 195 190 186 180 279 447 217 218 219 117 270 271 280 241 282 97 268 40 425 426 427"
MACHINES: dict[str, tuple[int, tuple[int, int, int], list[int]]] = {
    "x86_64": (0xC000003E, (157, 41, 53), [int(number) for number in _X86.split()]),
    "aarch64": (0xC00000B7, (167, 198, 199), [int(number) for number in _ARM.split()]),
}
X32 = 1 << 30  # numbers from here on are of another table, on x86
SET_DEATH_SIGNAL, SET_SECCOMP = 1, 22
UNIX = 1  # the family of sockets within this machine
LOAD, EQUAL, AT_LEAST, GIVE = 0x20, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # of what a filter sees
KILL, DENY, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000

Word = tuple[int, int, int, int]  # code, jump if true, jump if not, value


def words(machine: str) -> list[Word]:
    """The filter's program. A jump counts the words that are passed over. Raises KeyError for a machine that
    is not known."""
    audit, (prctl, socket, socketpair), calls = MACHINES[machine]
    lines: list[tuple[int, str, str, int]] = [
        (LOAD, "", "", ARCHITECTURE), (EQUAL, "", "kill", audit),
        (LOAD, "", "", NUMBER), (AT_LEAST, "deny", "", X32),
        *((EQUAL, "deny", "", call) for call in calls),
        (EQUAL, "signal", "", prctl), (EQUAL, "family", "", socket), (EQUAL, "family", "allow", socketpair),
    ]  # fmt: skip
    places: dict[str, int] = {}
    for name, block in (
        ("signal", [(LOAD, "", "", FIRST_ARGUMENT), (EQUAL, "deny", "allow", SET_DEATH_SIGNAL)]),
        ("family", [(LOAD, "", "", FIRST_ARGUMENT), (EQUAL, "allow", "deny", UNIX)]),
        ("allow", [(GIVE, "", "", ALLOW)]),
        ("deny", [(GIVE, "", "", DENY)]),
        ("kill", [(GIVE, "", "", KILL)]),
    ):
        places[name] = len(lines)
        lines += block

    def jump(at: int, name: str) -> int:
        return places[name] - at - 1 if name else 0

    return [(code, jump(at, yes), jump(at, no), value) for at, (code, yes, no, value) in enumerate(lines)]


def install(libc: ctypes.CDLL, machine: str) -> int:
    """Lay the filter upon this process and its children, for good; what prctl says, 0 where it is laid."""
    found = words(machine)
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *word) for word in found))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(found), ctypes.addressof(program)))
    told: int = libc.prctl(SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(filters)), 0, 0)
    return told
