"""Programs as comma-separated text, one line a lane, and torch's schedule files.

    program,1
    microbatches,2
    placement,0,1
    route,1,0@0,1@1          (only where a micro-batch leaves the usual way: stage@rank, in order)
    lane,0,compute,0F0,0F1,0B0,0B1
    lane,0,to 1,0SEND_F0,0SEND_F1
    lane,0,from 1,0RECV_B0,0RECV_B1
    lane,0,vocabulary,0EMBED0,1SHARE0,...          (only with Vocabulary Parallelism: what the ranks join)
    ...

Lanes of messages may be left out; `lower` adds them. A file of torch (`_dump_csv`: one line a rank, without
names) is read too; the messages in it are dropped, since `lower` adds them again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.schedule.action import COMPUTE, OVERLAP, STAGE_WIDE, Action, parse, texts
from shunter.schedule.assemble import Route, Visit, assemble
from shunter.schedule.lower import RECEIVES, SENDS, Message, attach
from shunter.schedule.meetings import VOCABULARY_LANE
from shunter.schedule.order import Order
from shunter.schedule.program import COMPUTE_LANE, Lane, Program

FORMAT = 1


def write_order(order: Order) -> str:
    """torch's form of an order: one line a rank."""
    return _table([list(texts(actions)) for actions in order.actions])


def write_program(program: Program, order: Order, routes: Sequence[Route] | None = None) -> str:
    """A program's text. `order` and `routes` are what it was assembled from."""
    rows: list[list[str]] = [
        ["program", str(FORMAT)],
        ["microbatches", str(order.microbatches)],
        ["placement", *map(str, order.placement)],
    ]
    for microbatch, route in enumerate(routes or ()):
        rows.append(["route", str(microbatch), *(f"{stage}@{rank}" for stage, rank in route)])
    for rank, lane in sorted(program.order):
        if lane == COMPUTE_LANE:
            cells = list(texts(program.actions(rank)))
        else:
            cells = [str(Message(node.action, node.part)) for node in program.lane(rank, lane)]
        rows.append(["lane", str(rank), lane, *cells])
    return _table(rows)


@dataclass(frozen=True)
class Written:
    """What a file says. routes: None where all take the usual one; messages: none if they are to be added."""

    order: Order
    routes: Sequence[Route] | None = None
    messages: dict[Lane, list[Message]] = field(default_factory=dict)

    def program(self, *, released_at_input: float = 0.0) -> Program:
        """With the file's messages, or without any. Raises ShunterError where it is not sound."""
        program = assemble(self.order, routes=self.routes, released_at_input=released_at_input)
        return attach(program, self.messages) if self.messages else program


def read_program(text: str, where: str = "", *, released_at_input: float = 0.0) -> Program:
    """The program of a text. Raises ShunterError, with line and rank, for one that is not sound."""
    return read(text, where).program(released_at_input=released_at_input)


def read(text: str, where: str = "") -> Written:
    """What a text says, in shunter's form or in torch's. Raises ShunterError for one that is not readable."""
    rows = [row for row in csv.reader(io.StringIO(text))]
    if not rows or not any(cell.strip() for row in rows for cell in row):
        raise ShunterError("the file is empty", where=where, mend="Give one line for each rank.")
    if rows[0][:1] != ["program"]:
        return Written(_torch_order(rows, where))
    return _own(rows, where)


def read_file(path: Path) -> Written:
    """Raises ShunterError for a file that cannot be read, too."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ShunterError(
            f"the program cannot be read: {reason}", where=str(path), mend="Name a file."
        ) from None
    return read(text, str(path))


def _own(rows: Sequence[Sequence[str]], where: str) -> Written:
    head: dict[str, list[int]] = {}
    routes: dict[int, Route] = {}
    compute: dict[int, list[Action]] = {}
    messages: dict[Lane, list[Message]] = {}
    joined: dict[int, list[Action]] = {}
    for number, row in enumerate(rows, 1):
        place = f"{where}:{number}"
        cells = [cell.strip() for cell in row]
        kind, rest = (cells[0], cells[1:]) if cells else ("", [])
        if kind in ("program", "microbatches", "placement"):
            head[kind] = [_whole(cell, place) for cell in rest if cell]
        elif kind == "route":
            stops = [cell.split("@") for cell in rest[1:] if cell]
            if any(len(stop) != 2 for stop in stops):
                raise ShunterError("a route is not readable", where=place, mend="Write stops as stage@rank.")
            routes[_whole(rest[0], place)] = [Visit(_whole(s, place), _whole(r, place)) for s, r in stops]
        elif kind == "lane" and len(rest) >= 2:
            rank = _whole(rest[0], place)
            if rest[1] == COMPUTE_LANE:
                compute[rank] = [action for cell in rest[2:] for action in parse(cell, place)]
            elif rest[1] == VOCABULARY_LANE:
                joined[rank] = [action for cell in rest[2:] for action in parse(cell, place)]
            else:
                messages[rank, rest[1]] = [_message(cell, place) for cell in rest[2:] if cell]
        elif kind:
            raise ShunterError(
                f"{kind!r} begins no line of a program",
                where=place,
                mend="Lines begin with program, microbatches, placement, route or lane.",
            )
    if head["program"] != [FORMAT]:
        raise ShunterError(
            f"the program has format {head['program']}, not {FORMAT}", where=where, mend="Write it again."
        )
    for name in ("microbatches", "placement"):
        if not head.get(name):
            raise ShunterError(f"the program has no line {name!r}", where=where, mend=f"Add `{name},...`.")
    placement, count = tuple(head["placement"]), head["microbatches"][0]
    ranks = 1 + max([*placement, *compute])
    rows_of = tuple(tuple(compute.get(rank, ())) for rank in range(ranks))
    collectives = tuple(tuple(joined.get(rank, ())) for rank in range(ranks)) if joined else ()
    order = Order(placement, rows_of, count, collectives)
    usual = [Visit(stage, rank) for stage, rank in enumerate(placement)]
    ways = [routes.get(microbatch, usual) for microbatch in range(count)] if routes else None
    return Written(order, ways, messages)


def _torch_order(rows: Sequence[Sequence[str]], where: str) -> Order:
    """Who holds a stage follows from who computes it."""
    everything: list[tuple[Action, ...]] = []
    holder: dict[int, int] = {}
    count = 0
    for rank, row in enumerate(rows):
        actions = [action for cell in row for action in parse(cell, f"{where}:{rank + 1}")]
        kept = [action for action in actions if action.op not in SENDS and action.op not in RECEIVES]
        for action in kept:
            if action.op not in COMPUTE and action.op not in STAGE_WIDE:
                raise ShunterError(
                    f"{action.op!r} is no operation that is known",
                    where=f"{where}:{rank + 1}: {action}",
                    mend=f"Known are {', '.join(sorted(COMPUTE | STAGE_WIDE))} and pairs ({OVERLAP}).",
                )
            if holder.setdefault(action.stage, rank) != rank:
                raise ShunterError(
                    f"stage {action.stage} is on rank {holder[action.stage]} and on rank {rank}",
                    where=f"{where}:{rank + 1}: {action}",
                    mend="Write replicas in shunter's own form, with a route for each micro-batch.",
                )
            count = max(count, action.microbatch + 1)
        everything.append(tuple(kept))
    missing = [stage for stage in range(1 + max(holder, default=-1)) if stage not in holder]
    if missing:
        raise ShunterError(
            f"no rank computes stage {missing[0]}", where=where, mend="Number stages from 0 without gaps."
        )
    return Order(tuple(holder[stage] for stage in sorted(holder)), tuple(everything), count)


def _message(cell: str, where: str) -> Message:
    text, _, part = cell.partition(":")
    actions = parse(text, where)
    if len(actions) != 1:
        raise ShunterError(f"{cell!r} is no message", where=where, mend="Write one such as `0SEND_F1`.")
    return Message(actions[0], part)


def _whole(text: str, where: str) -> int:
    if not text.isdecimal():
        raise ShunterError(f"{text!r} is not a whole number", where=where, mend="Write digits alone.")
    return int(text)


def _table(rows: Sequence[Sequence[str]]) -> str:
    into = io.StringIO()
    csv.writer(into, lineterminator="\n").writerows(rows)
    return into.getvalue()
