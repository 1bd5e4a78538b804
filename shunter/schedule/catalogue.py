"""The schedules by name, with what each needs and where it is from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.schedule.builders import controlled, rounds, single, vee
from shunter.schedule.order import Order

MOST = 500_000  # forwards of a program: a slip of the hand should not fill the memory

Build = Callable[[int, int, int, int | None], Order]  # ranks, micro-batches, chunks, group


@dataclass(frozen=True)
class Schedule:
    """A named builder.

    chunks:  stages on each rank unless asked otherwise.
    most:    the most that can be asked for; None where any number can.
    grouped: takes `group`, the number of micro-batches that pass together.
    halves:  the backward comes in two halves, so stages must be able to defer weight gradients.
    largest: ranks beyond which building takes minutes.
    source:  paper and section.
    """

    name: str
    about: str
    source: str
    builder: Build
    chunks: int = 1
    most: int | None = 1
    grouped: bool = False
    halves: bool = False
    largest: int = 2048

    def build(
        self, ranks: int, microbatches: int, *, chunks: int | None = None, group: int | None = None
    ) -> Order:
        """The order for `ranks` and `microbatches`. Raises ShunterError for a shape that it cannot have."""
        _positive("ranks", ranks)
        _positive("microbatches", microbatches)
        if ranks > self.largest:
            raise ShunterError(
                f"{self.name} is built for at most {self.largest:,} ranks, not {ranks:,}",
                mend="Its placing would take minutes: use fewer ranks, or choose 1f1b or zb1p.",
            )
        chunks = self.chunks if chunks is None else chunks
        if (forwards := ranks * microbatches * max(1, chunks)) > MOST:
            raise ShunterError(
                f"{ranks:,} ranks, {microbatches:,} micro-batches and {_number(chunks, 'stage')} on each "
                f"rank make {forwards:,} forwards, more than {MOST:,}",
                mend="Use fewer: what is simulated has to fit in memory.",
            )
        least = 2 if self.most == self.chunks == 2 else 1
        if chunks < least or (self.most is not None and chunks > self.most):
            raise ShunterError(
                f"{self.name} has {_number(self.chunks, 'stage')} on each rank, not {chunks}"
                if self.most is not None
                else f"chunks are {chunks}, which is not positive",
                mend="Leave --chunks out, or choose a schedule with several stages a rank, such as "
                "interleaved-1f1b.",
            )
        if group is not None and not self.grouped:
            raise ShunterError(
                f"{self.name} does not pass micro-batches in groups",
                mend="Leave the group out, or choose interleaved-1f1b, looped-dfs or zb1p.",
            )
        return self.builder(ranks, microbatches, chunks, group)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ShunterError(f"{name} is {value}", mend="It must be at least 1.")


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def schedule(name: str) -> Schedule:
    """The schedule of this name. Raises ShunterError, with the nearest name, where there is none."""
    found = SCHEDULES.get(name)
    if found is None:
        guess = nearest(name, SCHEDULES)
        raise ShunterError(
            f"no schedule is called {name!r}",
            mend=f"Did you mean {guess}?" if guess else f"Known are {', '.join(SCHEDULES)}.",
        )
    return found


SCHEDULES: dict[str, Schedule] = {
    entry.name: entry
    for entry in (
        Schedule(
            "gpipe",
            "all forwards, then all backwards, the last micro-batch first",
            "arXiv 1811.06965, section 2.3",
            lambda p, m, v, g: single.gpipe(p, m),
        ),
        Schedule(
            "gpipe-fifo",
            "all forwards, then all backwards, the first micro-batch first",
            "torch.distributed.pipelining ScheduleGPipe",
            lambda p, m, v, g: single.gpipe(p, m, fifo=True),
        ),
        Schedule(
            "1f1b",
            "backwards as early as they can be: activations do not grow with micro-batches",
            "arXiv 2006.09503, section 2.3",
            lambda p, m, v, g: single.one_f_one_b(p, m),
        ),
        Schedule(
            "interleaved-1f1b",
            "1F1B over several stages a rank: so many times less bubble, so many times more messages",
            "arXiv 2104.04473, section 2.2",
            lambda p, m, v, g: rounds.interleaved(p, m, v, group=g),
            chunks=2,
            most=None,
            grouped=True,
        ),
        Schedule(
            "looped-bfs",
            "every micro-batch through one round of stages before the next round",
            "arXiv 2211.05953",
            lambda p, m, v, g: rounds.looped_breadth_first(p, m, v),
            chunks=2,
            most=None,
        ),
        Schedule(
            "looped-dfs",
            "groups of micro-batches through all rounds, one group after the other",
            "arXiv 2211.05953",
            lambda p, m, v, g: rounds.looped_depth_first(p, m, v, group=g),
            chunks=2,
            most=None,
            grouped=True,
        ),
        Schedule(
            "zb1p",
            "1F1B whose weight gradients fill the bubble, in 1F1B's memory (ZB-H1)",
            "arXiv 2401.10241, section 2",
            lambda p, m, v, g: rounds.interleaved_zero_bubble(p, m, v, group=g),
            most=None,
            grouped=True,
            halves=True,
        ),
        Schedule(
            "zb2p",
            "no bubble within a rank's span, for up to twice 1F1B's memory (ZB-H2)",
            "arXiv 2401.10241, section 2.2",
            lambda p, m, v, g: controlled.zero_bubble_2p(p, m),
            halves=True,
            largest=128,
        ),
        Schedule(
            "zbv",
            "two stages a rank, down and up again: no bubble within the span, in 1F1B's memory",
            "arXiv 2401.10241, section 6",
            lambda p, m, v, g: vee.zero_bubble_v(p, m),
            chunks=2,
            most=2,
            halves=True,
            largest=512,
        ),
        Schedule(
            "v-half",
            "the same placement in about half of 1F1B's memory",
            "arXiv 2405.15362, section 4",
            lambda p, m, v, g: controlled.v_half(p, m),
            chunks=2,
            most=2,
            halves=True,
            largest=128,
        ),
        Schedule(
            "v-min",
            "the same placement in about a third of 1F1B's memory",
            "arXiv 2405.15362, section 4",
            lambda p, m, v, g: controlled.v_min(p, m),
            chunks=2,
            most=2,
            halves=True,
            largest=128,
        ),
        Schedule(
            "dualpipev",
            "forwards overlap with other micro-batches' backwards, so that communication hides",
            "arXiv 2412.19437, section 3.2.1, cut in half",
            lambda p, m, v, g: vee.dual_pipe_v(p, m),
            chunks=2,
            most=2,
            halves=True,
        ),
        Schedule(
            "forward-only",
            "no backwards: evaluation and generation",
            "",
            lambda p, m, v, g: single.forward_only(p, m, v),
            most=None,
        ),
    )
}
