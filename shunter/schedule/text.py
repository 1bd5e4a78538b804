"""Programs as comma-separated text, one line a lane, and torch's schedule files.

    program,1
    microbatches,2
    placement,0,1
    route,1,0@0,1@1          (only where a micro-batch leaves the usual way: stage@rank, in order;
                              0.head@0 at its end comes back to the head that stands at stage 0)
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
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.schedule.action import COMPUTE, OVERLAP, STAGE_WIDE, VOCABULARY, Action, parse, texts
from shunter.schedule.assemble import Route, Visit, assemble
from shunter.schedule.lower import RECEIVES, SENDS, Message, attach
from shunter.schedule.meetings import COLLECTIVES, VOCABULARY_LANE
from shunter.schedule.order import Order
from shunter.schedule.program import COMPUTE_LANE, Lane, Program

FORMAT = 1
MOST = 1_000_000  # micro-batches and stages of a file: a slip of the hand should not fill the memory


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
        rows.append(["route", str(microbatch), *map(str, route)])
    for rank, lane in sorted(program.order):
        if lane == COMPUTE_LANE:
            cells = list(texts(program.actions(rank)))
        else:
            cells = [str(Message(node.action, node.payload)) for node in program.lane(rank, lane)]
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
    lanes: dict[Lane, list[Message]] = {}
    for number, row in enumerate(rows, 1):
        place = f"{where}:{number}"
        cells = [cell.strip() for cell in row]
        kind, rest = (cells[0], cells[1:]) if cells else ("", [])
        if kind in ("program", "microbatches", "placement"):
            _once(kind, head, kind, place)
            head[kind] = [_whole(cell, place) for cell in rest if cell]
        elif kind == "route":
            if not rest or not any(rest[1:]):
                raise ShunterError(
                    "a route has no stops", where=place, mend="Write `route,MICRO-BATCH,STAGE@RANK,...`."
                )
            microbatch = _whole(rest[0], place)
            _once(f"route,{microbatch}", routes, microbatch, place)
            routes[microbatch] = [_visit(cell, place) for cell in rest[1:] if cell]
        elif kind == "lane":
            if len(rest) < 2 or not rest[1]:
                raise ShunterError(
                    "a lane has no name",
                    where=place,
                    mend="Write `lane,RANK,compute,...` or `lane,RANK,to 1,...`.",
                )
            lane = _whole(rest[0], place), rest[1]
            _once(f"lane,{lane[0]},{lane[1]}", lanes, lane, place)
            lanes[lane] = _lane(lane[1], rest[2:], place)
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
    return _written(tuple(head["placement"]), head["microbatches"], routes, lanes, where)


def _written(
    placement: tuple[int, ...],
    counts: Sequence[int],
    routes: dict[int, Route],
    lanes: dict[Lane, list[Message]],
    where: str,
) -> Written:
    """What the lines say together. Each rank has a line for what it computes, if only an empty one."""
    if len(counts) != 1 or not 1 <= counts[0] <= MOST:
        told = ", ".join(map(str, counts))
        raise ShunterError(
            f"microbatches are {told}", where=where, mend=f"Give one number from 1 to {MOST:,}."
        )
    count = counts[0]
    compute = {rank for rank, lane in lanes if lane == COMPUTE_LANE}
    visited = {visit.rank for route in routes.values() for visit in route}
    # One after the other: a line may name any rank, and nobody waits for a list of all before it.
    for rank in chain(placement, sorted(visited), (at for at, _ in lanes), range(max(compute, default=0))):
        if rank not in compute:
            raise ShunterError(
                f"the program has no line `lane,{rank},{COMPUTE_LANE}`",
                where=where,
                mend=f"Add it, empty if rank {rank} computes nothing, or number ranks from 0 without gaps.",
            )
    for microbatch in routes:
        if microbatch >= count:
            raise ShunterError(
                f"micro-batch {microbatch} has a route, and there are {count} micro-batches",
                where=where,
                mend="Number them from 0.",
            )

    def actions(lane: str) -> tuple[tuple[Action, ...], ...]:
        return tuple(
            tuple(message.action for message in lanes.get((rank, lane), ())) for rank in range(len(compute))
        )

    joins = any(lane == VOCABULARY_LANE for _, lane in lanes)
    order = Order(placement, actions(COMPUTE_LANE), count, actions(VOCABULARY_LANE) if joins else ())
    usual = [Visit(stage, rank) for stage, rank in enumerate(placement)]
    ways = [routes.get(microbatch, usual) for microbatch in range(count)] if routes else None
    own = (COMPUTE_LANE, VOCABULARY_LANE)
    return Written(order, ways, {lane: messages for lane, messages in lanes.items() if lane[1] not in own})


def _lane(lane: str, cells: Sequence[str], where: str) -> list[Message]:
    """What stands on a lane; actions without a payload on those that carry no messages."""
    if lane in (COMPUTE_LANE, VOCABULARY_LANE):
        known = COMPUTE | STAGE_WIDE | VOCABULARY if lane == COMPUTE_LANE else COLLECTIVES
        found = [Message(action) for cell in cells for action in parse(cell, where)]
    elif re.fullmatch(r"(to|from) \d+", lane):
        known = SENDS if lane.startswith("to ") else RECEIVES
        found = [_message(cell, where) for cell in cells if cell]
    else:
        raise ShunterError(
            f"{lane!r} is no lane",
            where=where,
            mend=f"Lanes are {COMPUTE_LANE}, {VOCABULARY_LANE}, `to RANK` and `from RANK`.",
        )
    for action, _ in found:
        if action.op not in known:
            raise ShunterError(
                f"{action}: {action.op!r} is no operation of the lane {lane!r}",
                where=where,
                mend=f"Known are {', '.join(sorted(known))}.",
            )
        if (action.microbatch < 0) != (action.op in STAGE_WIDE):
            told = "is of no micro-batch" if action.op in STAGE_WIDE else "names no micro-batch"
            raise ShunterError(f"{action} {told}", where=where, mend="Write `0F2`, and `0UNSHARD`.")
    return found


def _visit(cell: str, where: str) -> Visit:
    """`0@1`, or `0.head@1`."""
    found = re.fullmatch(r"(\d+)(?:\.([a-z_]+))?@(\d+)", cell)
    if found is None:
        raise ShunterError(
            f"{cell!r} is no stop of a route", where=where, mend="Write stops as stage@rank, such as `2@0`."
        )
    return Visit(int(found[1]), int(found[3]), found[2] or "")


def _once(line: str, known: Container[object], key: object, where: str) -> None:
    if key in known:
        raise ShunterError(
            f"the line {line!r} stands there a second time", where=where, mend="Make one of the two."
        )


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
            if max(action.stage, action.microbatch) >= MOST:
                raise ShunterError(
                    f"{action} has a number of {MOST:,} or more",
                    where=f"{where}:{rank + 1}",
                    mend="Number stages and micro-batches from 0.",
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
    text, _, payload = cell.partition(":")
    actions = parse(text, where)
    if len(actions) != 1:
        raise ShunterError(f"{cell!r} is no message", where=where, mend="Write one such as `0SEND_F1`.")
    return Message(actions[0], payload)


def _whole(text: str, where: str) -> int:
    if not text.isdecimal():
        raise ShunterError(f"{text!r} is not a whole number", where=where, mend="Write digits alone.")
    return int(text)


def _table(rows: Sequence[Sequence[str]]) -> str:
    into = io.StringIO()
    csv.writer(into, lineterminator="\n").writerows(rows)
    return into.getvalue()
