"""Processes that were started together, on one machine or several, and do what rank 0 says.

Rank 0 plays the runner: it plans, shows progress, publishes, and does jobs for one process itself. The others
wait, however long that takes. A job for several processes is a fresh process beside each of them, so that
nothing of one job is left in the next, and one that dies takes down no more than its job.

What is said goes through the store that torchrun holds (`channel`): orders, numbered from 1, and a reply of
each rank; a beat of each process, by which the others see that it lives.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.launch.channel import JOIN, Channel, Gone
from shunter.launch.child import Child
from shunter.launch.hands import Hands
from shunter.launch.place import Place, leave, tell_end

BEAT = 2.0  # seconds between two beats
SILENT = 30.0  # seconds without a beat after which a waiting process is given up
MUTE = 10.0  # the same once a rank has failed
BUSY = 300.0  # the same for rank 0, whose work may hold the interpreter for long
GRACE = 2.0  # seconds in which ranks tell of a failure before all are ended
LEAVE = 10.0  # seconds that the others get to hear how it ended


class Crew:
    """On rank 0: the others, and what they are told."""

    def __init__(self, place: Place) -> None:
        """Wait for the others. Raises ShunterError, naming them, when some do not come."""
        self.place, self.channel, self.hands = place, Channel(place), Hands(place)
        self._number = 0
        self._seen: dict[int, tuple[Any, float]] = {}  # rank -> its last beat, and when that was new
        self._looked = 0.0
        self._away: set[int] = set()  # that are gone, and will not say that they leave
        self._ended = threading.Event()
        _end_with_agent()
        leave(os.environ)
        self.channel.put("beat/0", 0)
        threading.Thread(target=self._beats, daemon=True).start()
        self.hellos: dict[int, dict[str, Any]] = {0: self.hands.hello()}
        until = time.monotonic() + JOIN
        while missing := [rank for rank in range(place.size) if rank not in self.hellos]:
            if time.monotonic() > until:
                raise ShunterError(
                    f"of {place.size} processes {_listed(missing)} did not come within {JOIN:.0f} s",
                    mend="Look at their output, and start the same command on every machine.",
                )
            for rank in missing:
                if (hello := self.channel.get(f"hello/{rank}")) is not None:
                    self.hellos[rank] = hello
            time.sleep(elastic.EVERY / 2)

    @property
    def size(self) -> int:
        """Processes, this one included."""
        return self.place.size

    @property
    def leaders(self) -> dict[int, int]:
        """Node -> its first rank, in the order of nodes."""
        first: dict[int, int] = {}
        for rank, hello in sorted(self.hellos.items()):
            first.setdefault(int(hello["node"]), rank)
        return dict(sorted(first.items()))

    def host(self, rank: int) -> str:
        """The name of a rank's node; with the node's number where two have the same name."""
        hello = self.hellos[rank]
        same = {each["node"] for each in self.hellos.values() if each["host"] == hello["host"]}
        return str(hello["host"]) if len(same) == 1 else f"{hello['host']} (node {hello['node']})"

    def stop(self) -> int | None:
        """The signal that asks the run to save and stop, as another process heard it; None without one."""
        try:
            heard: int | None = self.channel.get("stop")
        except Gone:
            return None  # said by whoever needs the others next
        return heard

    def give(self, order: dict[str, Any]) -> int:
        """Tell all; returns the order's number."""
        self._number += 1
        self.channel.put(f"order/{self._number}", order)
        return self._number

    def ask(self, order: dict[str, Any], ranks: Sequence[int], timeout: float) -> dict[int, Any]:
        """Tell some, this rank perhaps among them; their replies. Raises ShunterError for one that refuses or
        does not answer within `timeout` seconds."""
        number = self.give({**order, "ranks": list(ranks)})
        replies: dict[int, Any] = {}
        if 0 in ranks:
            replies[0] = self.hands.reply(order)
        until = time.monotonic() + timeout
        while missing := [rank for rank in ranks if rank not in replies]:
            for rank in missing:
                if (reply := self.channel.get(f"reply/{number}/{rank}")) is not None:
                    replies[rank] = reply
            if (gone := self._gone(missing)) is not None:
                raise gone
            if missing and time.monotonic() > until:
                raise ShunterError(
                    f"{self.host(missing[0])} does not answer within {timeout:.0f} s",
                    mend="Look at its load and its network.",
                )
            time.sleep(elastic.EVERY / 4)
        for rank, reply in sorted(replies.items()):
            if refused := reply.get("refused"):
                raise ShunterError(refused["what"], where=refused["where"], mend=refused["mend"])
            if failed := reply.get("failed"):
                raise RuntimeError(f"rank {rank} on {self.host(rank)} failed:\n{failed}")
        return {rank: replies[rank]["value"] for rank in ranks}

    def launch(
        self,
        module: str,
        request: dict[str, Any],
        count: int,
        folder: Path,
        *,
        threads: int,
        poll: Callable[[], None],
    ) -> dict[str, Any]:
        """As `elastic.launch`, on the first `count` processes. threads: 0 shares each node's cores.

        Raises what the first that failed told, also ShunterError where a process or its machine is gone.
        """
        for left in folder.glob("answer*.json"):
            left.unlink()
        order = {
            "do": "job", "module": module, "request": request, "count": count, "folder": str(folder),
            "threads": threads, "ranks": list(range(count)),
        }  # fmt: skip
        self._seen.clear()
        number = self.give(order)
        child = Child(self.place, number, order)
        replies: dict[int, dict[str, Any]] = {}
        failed_at: float | None = None
        gone: ShunterError | None = None
        try:
            while len(replies) < count:
                poll()
                time.sleep(elastic.EVERY)
                if 0 not in replies and (ended := child.poll()) is not None:
                    replies[0] = ended
                missing = [rank for rank in range(1, count) if rank not in replies]
                for rank in missing:
                    if (reply := self.channel.get(f"reply/{number}/{rank}")) is not None:
                        replies[rank] = reply
                limit = SILENT if failed_at is None else MUTE
                gone = gone or self._gone([rank for rank in missing if rank not in replies], limit)
                now = time.monotonic()
                if failed_at is None and (gone or any(reply.get("code") != 0 for reply in replies.values())):
                    failed_at = now
                if failed_at is not None and now - failed_at > GRACE:
                    self.channel.put(f"abort/{number}", True)
                    child.end()
                    if now - failed_at > GRACE + (GRACE if gone else elastic.PARTING + GRACE):
                        break
            poll()
        except Gone:
            gone = ShunterError(
                "the store of the processes does not answer any more",
                mend="Look at what torchrun said; the same command continues from the last checkpoint.",
            )
        finally:
            with suppress(Gone):
                self.channel.put(f"abort/{number}", True)
            child.kill()
        answer = folder / "answer.json"
        if (
            gone is None
            and len(replies) == count
            and all(reply.get("code") == 0 for reply in replies.values())
            and answer.exists()
        ):
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return found
        raise self._cause(replies, request, count, gone, folder)

    def end(self, code: int) -> None:
        """Let the others go with this exit code."""
        with suppress(Gone):
            self.channel.put("end", code)
            until = time.monotonic() + LEAVE
            staying = self.size - 1 - len(self._away)
            while (self.channel.get("left") or 0) < staying and time.monotonic() < until:
                time.sleep(elastic.EVERY / 4)
        self._ended.set()

    def _cause(
        self,
        replies: dict[int, dict[str, Any]],
        request: dict[str, Any],
        count: int,
        gone: ShunterError | None,
        folder: Path,
    ) -> Exception:
        for rank, reply in sorted(replies.items()):
            if refused := reply.get("refused"):
                return ShunterError(refused["what"], where=refused["where"], mend=refused["mend"])
            if failed := reply.get("failed"):
                return RuntimeError(f"rank {rank} on {self.host(rank)} could not begin:\n{failed}")
        failures = sorted(
            (reply["failure"] for reply in replies.values() if reply.get("failure")),
            key=lambda failure: float(failure["time"]),
        )
        ended = [(rank, int(reply["code"])) for rank, reply in sorted(replies.items()) if reply["code"] != 0]
        silent = [rank for rank in range(count) if rank not in replies]
        # What a rank said of itself comes before the silence of another, but not the echo of that silence.
        if gone is not None and all(failure["lost"] for failure in failures):
            return gone
        if silent and all(failure["lost"] for failure in failures):
            names = ", ".join(f"{rank} on {self.host(rank)}" for rank in silent[:4])
            return ShunterError(
                f"rank {names} does not say how it ended",
                where=str(folder),
                mend="Look at that machine; the same command continues from the last checkpoint.",
            )
        where = folder / f"output-{ended[0][0] if ended else 0}.txt"
        ended = [(elastic.place_of(request, process), code) for process, code in ended]
        return elastic.cause(failures, ended, "rank 0 gave no answer", where)

    def _gone(self, ranks: Sequence[int], limit: float = SILENT) -> ShunterError | None:
        """The first of these whose beat is not heard any more, or that has left by itself."""
        now = time.monotonic()
        if now - self._looked < BEAT or not ranks:
            return None
        self._looked = now
        try:
            beats = self.channel.get_all([f"beat/{rank}" for rank in ranks])
        except Gone:
            return ShunterError("the store of the processes does not answer any more")
        for rank, beat in zip(ranks, beats, strict=True):
            if rank not in self._seen or self._seen[rank][0] != beat:
                self._seen[rank] = (beat, now)
            if beat is None or now - self._seen[rank][1] > limit:
                self._away.add(rank)
                return ShunterError(
                    f"rank {rank} on {self.host(rank)} is gone"
                    + ("" if beat is None else f": nothing was heard of it for {limit:.0f} s"),
                    mend="Look at that machine; the same command continues from the last checkpoint.",
                )
        return None

    def _beats(self) -> None:
        number = 0
        with suppress(Gone):
            while not self._ended.wait(BEAT):
                number += 1
                self.channel.put("beat/0", number)


@contextmanager
def leading(place: Place) -> Iterator[Crew]:
    """On rank 0: the crew, which hears at the end with which exit code it ends."""
    crew = Crew(place)
    code = 1
    try:
        yield crew
        code = 0
    except ShunterError:
        code = 2
        raise
    except KeyboardInterrupt:
        code = 130
        raise
    except BaseException as error:
        code = int(getattr(error, "exit_code", 1))  # of typer.Exit
        raise
    finally:
        tell_end(code)
        crew.end(code)


def attend(place: Place) -> int:
    """On every other rank: do what rank 0 says until it ends. Returns its exit code; 1 when it is gone."""
    _end_with_agent()
    follower = _Follower(place)
    try:
        return follower.run()
    except Gone:
        if place.leads:
            print(f"error: {place.host}: rank 0 is gone.", file=sys.stderr)
        return 1
    except BaseException:
        with suppress(Gone):
            follower.channel.put(f"beat/{place.rank}", None)
        raise
    finally:
        follower.close()


class _Follower:
    def __init__(self, place: Place) -> None:
        self.place, self.channel, self.hands = place, Channel(place), Hands(place)
        self.every = elastic.EVERY / 2 + place.size / 500  # hundreds of processes ask one store
        self.signal: int | None = None
        self.child: Child | None = None
        self._beat, self._beaten = 0, 0.0
        self._leader: tuple[Any, float] = (None, time.monotonic())
        self._alive = time.monotonic()

    def run(self) -> int:
        threading.Thread(target=self._watch, daemon=True).start()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._hear)
        self._live()
        self.channel.put(f"hello/{self.place.rank}", self.hands.hello())
        done, told = 0, False
        while (code := self.channel.get("end")) is None:
            self._live()
            if self.signal is not None and not told:
                told = True
                self.channel.put("stop", self.signal)
            if self.child is not None:
                self._mind(self.child, done)
            elif (order := self.channel.get(f"order/{done + 1}")) is not None:
                done += 1
                if self.place.rank in order["ranks"]:
                    self._do(done, order)
            time.sleep(self.every)
        self.close()
        if self.place.leads:
            tell_end(int(code))
        self.channel.count("left")
        return int(code)

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
        self.hands.hush({})

    def _do(self, number: int, order: dict[str, Any]) -> None:
        if order["do"] != "job":
            self.channel.put(f"reply/{number}/{self.place.rank}", self.hands.reply(order))
            return
        try:
            self.child = Child(self.place, number, order)
        except OSError as error:
            refused = {"what": str(error), "where": self.place.host, "mend": "The store must be shared."}
            self.channel.put(f"reply/{number}/{self.place.rank}", {"refused": refused})
        except Exception:
            self.channel.put(f"reply/{number}/{self.place.rank}", {"failed": traceback.format_exc()})

    def _mind(self, child: Child, number: int) -> None:
        if (ended := child.poll()) is not None:
            self.channel.put(f"reply/{number}/{self.place.rank}", ended)
            self.child = None
        elif self.channel.get(f"abort/{number}"):
            child.end()

    def _live(self) -> None:
        """Beat, and look whether rank 0 does."""
        now = self._alive = time.monotonic()
        if now - self._beaten < BEAT:
            return
        self._beaten, self._beat = now, self._beat + 1
        self.channel.put(f"beat/{self.place.rank}", self._beat)
        beat = self.channel.get("beat/0")
        if beat != self._leader[0]:
            self._leader = (beat, now)
        elif now - self._leader[1] > BUSY:
            raise Gone("rank 0 does not beat")

    def _watch(self) -> None:
        """A machine that vanishes closes no connection: a call to it may never return."""
        while time.monotonic() - self._alive < BUSY:
            time.sleep(BEAT)
        os._exit(1)  # children see that their parent is gone

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number != signal.SIGHUP:
            raise KeyboardInterrupt
        self.signal = number


def _end_with_agent() -> None:
    """torchrun's agent may be killed itself: its processes must not go on without it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        elastic.guard()


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"rank {shown}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
