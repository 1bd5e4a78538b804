"""Work that each rank does alone, for as long as it takes, before all meet again.

A collective gives up after its timeout, whatever the rank that it waits for is doing. Here the others look
into the store instead: whoever works says every now and then that it lives, and at last that it is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from shunter.parallel.lost import PeerLost, answering

BEAT = 1.0  # seconds between two signs of life, or a tenth of what may pass without one
SHARE = 0.05  # of what was waited so far, that passes until the next look
LONGEST = 0.5  # seconds between two looks at most
WALK = 0.1  # of what may pass without a sign of life, until each rank is asked for its own
FAILURE = 1 << 32  # what one that fails adds to the count of those that are done
DONE, FAILED = "done", "failed"


class Heartbeat:
    """The ranks of one group. Each calls the same methods in one order.

    store: that all of them reach. silent: seconds without a sign of life after which a rank is given up.
    """

    def __init__(self, store: Store, rank: int, ranks: Sequence[int], silent: float) -> None:
        self._store = PrefixStore(f"heartbeat/{ranks[0]}-{ranks[-1]}-{len(ranks)}", store)
        self.rank, self.others, self.silent = rank, [each for each in ranks if each != rank], silent
        self._round = 0

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Within it this rank works by itself; at the end it waits until all others are done with theirs.

        what: for what, such as "hear what answers are worth". Raises PeerLost for one that fails, or gives no
        sign of life: because it is gone, stopped, or holds the interpreter. It does not see that a rank that
        beats makes no progress.
        """
        self._round += 1
        ended = threading.Event()
        with answering(self.rank, what):
            self._say("0")
        beats = threading.Thread(target=self._beat, args=(ended,), daemon=True, name="heartbeat")
        beats.start()
        said = FAILED
        try:
            yield
            said = DONE
        finally:
            ended.set()
            beats.join()
            with suppress(RuntimeError):  # whoever held the store is gone, and ends the others
                self._say(said)
        with answering(self.rank, what):
            self._wait(what)

    def _beat(self, ended: threading.Event) -> None:
        number = 0
        while not ended.wait(min(BEAT, self.silent / 10)):
            number += 1
            with suppress(RuntimeError):  # the next may arrive
                self._say(str(number))

    def _say(self, what: str) -> None:
        self._store.set(str(self.rank), f"{self._round} {what}")
        if what in (DONE, FAILED):
            self._store.add(f"{self._round}/{DONE}", 1 if what == DONE else FAILURE)

    def _done(self) -> int:
        """How many are done with this round, in one call for any number of ranks; FAILURE or more: not all
        will be."""
        return int(self._store.add(f"{self._round}/{DONE}", 0))

    def _wait(self, what: str) -> None:
        begin = walked = time.monotonic()
        heard = {other: ("", begin) for other in self.others}  # the last beat, and when that was new
        while heard and (done := self._done()) != len(self.others) + 1:
            now = time.monotonic()
            late = any(now - since > self.silent for _, since in heard.values())
            if done >= FAILURE or late or now - walked >= WALK * self.silent:
                walked = now
                self._walk(heard, what)
            if heard:  # not `Store.wait`, which writes a warning each time that it gives up
                time.sleep(min(LONGEST, SHARE * (now - begin) + 1e-3))

    def _walk(self, heard: dict[int, tuple[str, float]], what: str) -> None:
        """Ask for each rank that is not known to be done. Raises PeerLost."""
        for other in list(heard):
            said = self._heard(other)
            if said == DONE:
                del heard[other]
            elif said == FAILED:
                raise self._lost(other, what, "it has failed")
            elif said != heard[other][0]:
                heard[other] = (said, time.monotonic())
            elif time.monotonic() - heard[other][1] > self.silent:
                why = f"timed out waiting for a sign of life for {self.silent:g} s"
                raise self._lost(other, what, why)

    def _heard(self, other: int) -> str:
        """What a rank said last of this round; empty before it has come here."""
        if not self._store.check([str(other)]):
            return ""
        number, said = self._store.get(str(other)).decode().split()
        if int(number) > self._round:  # it has seen that all are done, and works again
            return DONE
        return str(said) if int(number) == self._round else ""

    def _lost(self, other: int, what: str, why: str) -> PeerLost:
        return PeerLost(
            f"rank {self.rank} cannot {what}: rank {other} does not answer ({why})",
            mend="Look at what that rank said last; the run continues from its last checkpoint.",
            waited=f"for rank {other}, to {what}",
        )
