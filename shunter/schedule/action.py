"""An action of a rank, and its text: `2F0` is the forward of micro-batch 0 on stage 2.

The text is that of torch.distributed.pipelining's schedule files, so both read each other's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from shunter.config.errors import ShunterError

FORWARD = "F"
BACKWARD = "B"  # both gradients at once
INPUT = "I"  # the gradient of the input
WEIGHT = "W"  # the gradient of the weights
RECOMPUTE = "R"  # the forward once more, for a backward whose forward kept its inputs only
UNSHARD = "UNSHARD"  # gather a stage's weights
RESHARD = "RESHARD"  # give them up again
REDUCE = "REDUCE_GRAD"  # reduce a stage's gradients over its replicas
SOFTMAX = "S"  # a vocabulary shard's logits and softmax
HEAD = "T"  # the gradients of a vocabulary shard of the head
EMBED = "IF"  # a vocabulary shard's part of the embedding
EMBED_BACK = "IB"  # its gradient
OVERLAP = "OVERLAP_F_B"  # the text's name of a pair that runs as one

COMPUTE = frozenset({FORWARD, BACKWARD, INPUT, WEIGHT, RECOMPUTE})
STAGE_WIDE = frozenset({UNSHARD, RESHARD, REDUCE})
VOCABULARY = frozenset({SOFTMAX, HEAD, EMBED, EMBED_BACK})  # what every rank does with its shard

HEAD_PART = "head"  # the part of a stage that a micro-batch comes back to, for the head and the loss

_TEXT = re.compile(r"(\d+)(?:\.([a-z_]+))?([A-Z][A-Z_]*)(\d*)")
_PAIR = re.compile(r"\(([^()]*)\)([A-Z_]+)")


class Action(NamedTuple):
    """One thing that a rank does.

    microbatch is -1 where the action is of the stage as a whole. `paired` marks an action that runs as
    one with the action after it in the order, such as a forward and a backward that overlap. `part` is the
    part of the stage that does it, if not the stage itself: `0.headF2`.
    """

    stage: int
    op: str
    microbatch: int = -1
    paired: bool = False
    part: str = ""

    def __str__(self) -> str:
        return f"{named(self.stage, self.part)}{self.op}{self.microbatch if self.microbatch >= 0 else ''}"


def named(stage: int, part: str = "") -> str:
    """A stage, or a part of it, as texts name it: `0`, `0.head`."""
    return f"{stage}.{part}" if part else str(stage)


def texts(actions: Iterable[Action]) -> Iterator[str]:
    """The text of each action; pairs become `(0F5;1B3)OVERLAP_F_B`."""
    held: list[Action] = []
    for action in actions:
        held.append(action)
        if action.paired:
            continue
        if len(held) == 1:
            yield str(action)
        else:
            yield f"({';'.join(map(str, held))}){OVERLAP}"
        held = []
    if held:
        raise ValueError(f"the last action, {held[-1]}, is paired with nothing")


def parse(text: str, where: str = "") -> list[Action]:
    """The action that a text names; several for a pair, none for an empty text.

    Raises ShunterError for a text that names none.
    """
    text = text.strip()
    if not text:
        return []
    if pair := _PAIR.fullmatch(text):
        inside = [_single(part, where) for part in pair[1].split(";")]
        if pair[2] != OVERLAP or len(inside) < 2:
            raise _unreadable(text, where)
        return [action._replace(paired=True) for action in inside[:-1]] + inside[-1:]
    return [_single(text, where)]


def _single(text: str, where: str) -> Action:
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise _unreadable(text, where)
    stage, part, op, microbatch = found.groups()
    return Action(int(stage), op, int(microbatch) if microbatch else -1, part=part or "")


def _unreadable(text: str, where: str) -> ShunterError:
    return ShunterError(
        f"{text.strip()!r} is no action",
        where=where,
        mend="An action is a stage, an operation and a micro-batch, such as `2F0`, or a pair of them, "
        "such as `(0F5;1B3)OVERLAP_F_B`.",
    )


def counts(order: Sequence[Sequence[Action]]) -> dict[tuple[str, int], int]:
    """(operation, stage) -> how many micro-batches it is done for, over all ranks."""
    found: dict[tuple[str, int], int] = {}
    for actions in order:
        for action in actions:
            key = (action.op, action.stage)
            found[key] = found.get(key, 0) + 1
    return found
