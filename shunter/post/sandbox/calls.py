"""The system calls that a program is refused, as a filter that the kernel runs (seccomp, classic BPF).

The filter is data first: `words` makes it, a test interprets it for each number, `install` hands it over.
Standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import struct

from shunter.post.sandbox.kernel import SET_SECCOMP, check, libc

# By the machine's name: its number for auditing, and the numbers of
# shmget shmat shmctl semget msgget mq_open memfd_create memfd_secret add_key request_key keyctl ptrace
# process_vm_readv process_vm_writev bpf perf_event_open userfaultfd unshare setns mount io_uring_* (three)
# The first eight are memory that no limit counts, the others what programs of tasks have no use for.
_X86 = "29 30 31 64 68 240 319 447 248 249 250 101 310 311 321 298 323 272 308 165 425 426 427"
_ARM = "194 196 195 190 186 180 279 447 217 218 219 117 270 271 280 241 282 97 268 40 425 426 427"
REFUSED = {
    "x86_64": (0xC000003E, [int(number) for number in _X86.split()]),
    "aarch64": (0xC00000B7, [int(number) for number in _ARM.split()]),
}
# Refused by their arguments: prctl, clone, socket, socketpair, setsockopt.
LOOKED_INTO = {"x86_64": (157, 56, 41, 53, 54), "aarch64": (167, 220, 198, 199, 208)}
# Told to be absent, so that a library takes another: clone3, whose flags a filter cannot see; sendfile,
# splice, vmsplice, by which a socket holds whole pages and counts the few bytes of them that are sent.
TOLD_ABSENT = {"x86_64": (435, 40, 275, 278), "aarch64": (435, 71, 76, 75)}
SPACES = 0x7E020000  # CLONE_NEW*, but NEWTIME, which clone cannot make
UNIX = 1  # the one family of sockets: vsock is in no network namespace, others a program has no use for
# `watch` counts a socket as what it can hold when it is made. SO_SNDBUF would change that, and filters, which
# have two names, would add to it. At a socket of datagrams a dozen wait, each as large as what another can
# hold; kinds with this bit are theirs.
OPTIONS, DATAGRAMS = (7, 26, 51), 2
X32 = 1 << 30  # another table of calls, by the same numbers with this bit

LOAD, EQUAL, ABOVE, ANY, GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
AUDIT, NUMBER, FIRST, SECOND, THIRD = 4, 0, 16, 24, 32  # where they stand in what a filter reads
KILL, ALLOW = 0x80000000, 0x7FFF0000
DENY, ABSENT, NO_FAMILY = (0x00050000 | error for error in (1, 38, 97))  # EPERM, ENOSYS, EAFNOSUPPORT
Word = tuple[int, int, int, int]  # operation, how far to jump where it is so, where not, its number
Step = tuple[int, int | None, int | None, int]  # the same, with an end to go to; None: the next word


def words(machine: str) -> list[Word]:
    """The filter. Raises OSError for a machine whose calls are not known."""
    if machine not in REFUSED:
        raise OSError(f"the system calls of {machine} are not known")
    audit, refused = REFUSED[machine]
    prctl, clone, socket, pair, option = LOOKED_INTO[machine]
    ends = (KILL, DENY, ABSENT, NO_FAMILY, ALLOW)
    steps: list[Step] = [
        (LOAD, None, None, AUDIT),
        (EQUAL, None, KILL, audit),
        (LOAD, None, None, NUMBER),
        (ABOVE, DENY, None, X32),
        *((EQUAL, DENY, None, number) for number in refused),
        *((EQUAL, ABSENT, None, number) for number in TOLD_ABSENT[machine]),
    ]
    family: list[Step] = [
        (LOAD, None, None, FIRST),
        (EQUAL, None, NO_FAMILY, UNIX),
        (LOAD, None, None, SECOND),
        (ANY, DENY, ALLOW, DATAGRAMS),
    ]
    looks: list[tuple[int, list[Step]]] = [
        # PR_SET_PDEATHSIG: it ends with what watches over it
        (prctl, [(LOAD, None, None, FIRST), (EQUAL, DENY, ALLOW, 1)]),
        (clone, [(LOAD, None, None, FIRST), (ANY, DENY, ALLOW, SPACES)]),
        (socket, family),
        (pair, family),
        (option, [(LOAD, None, None, THIRD), *((EQUAL, DENY, None, number) for number in OPTIONS)]),
    ]
    total = len(steps) + sum(len(look) + 2 for _, look in looks) + 1  # and one that allows what comes through
    place = {end: total + i for i, end in enumerate(ends)}

    def word(at: int, op: int, yes: int | None, no: int | None, number: int) -> Word:
        far = [0 if end is None else place[end] - at - 1 for end in (yes, no)]
        return (op, far[0], far[1], number)

    first = [word(i, *step) for i, step in enumerate(steps)]
    for number, look in looks:  # who does not have the number jumps over the rest
        first.append((EQUAL, 0, len(look) + 1, number))
        for step in look:
            first.append(word(len(first), *step))
        first.append((GIVE, 0, 0, ALLOW))
    first.append((GIVE, 0, 0, ALLOW))
    return first + [(GIVE, 0, 0, end) for end in ends]


def install() -> None:
    """Put the filter on this process and its children, for good."""
    made = words(os.uname().machine)
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *word) for word in made))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(made), ctypes.addressof(program)))
    check(libc.prctl(SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(filters)), 0, 0), "seccomp")
