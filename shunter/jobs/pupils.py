"""What `dpo`, `reward_model` and `rl` share: the model that learns, in one process or laid out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.jobs import adapters, pairs_account, taught, training
from shunter.recipe.job import JobContext
from shunter.surgery.config import AdapterConfig

if TYPE_CHECKING:
    from torch import nn

    from shunter.models.decoder import Decoder
    from shunter.parallel.part import Fill
    from shunter.post.course import Course, Pupil
    from shunter.post.layout import Unit
    from shunter.post.prompts import Read
    from shunter.post.spent import Shape


def course(context: JobContext[Any], shown: str = "pairs/accuracy") -> Course:
    """Of this job, on its ranks where it has several. shown: as in `Course`."""
    from shunter.post.course import Course
    from shunter.train.world import World

    world, config = context.world, context.config
    assert world is None or isinstance(world, World)
    return Course(config.train, config.how, taught.place(context), shown, world)


class Model:
    """A folder's model from its first weights to those that it has learnt.

    Laid out, no rank has all of it, but rank 0 at the end.
    """

    def __init__(self, decoder: Decoder, fill: Fill | None, context: JobContext[Any]) -> None:
        from shunter.train.world import World

        self.decoder, self.fill, self.context, self.spec = decoder, fill, context, decoder.spec
        world = context.world
        assert world is None or isinstance(world, World)
        self.world = world
        self._whole = decoder
        if world is not None and world.rank == 0:
            self._whole = training.bare(decoder)
        self._pupil: Pupil | None = None
        self.head: nn.Linear | None = None

    @classmethod
    def open(cls, folder: Path, context: JobContext[Any], adapter: AdapterConfig | None = None) -> Model:
        """As a job finds it, with adapters attached where they are to learn."""
        spread = context.world is not None
        return cls(*adapters.load(folder, adapter, context.config.seed, laid_out=spread), context)

    def pupil(self, course: Course, units: int, read: Sequence[Read], head: nn.Linear | None = None) -> Pupil:
        """The one that learns from so many pairs a step, out of these. head: a value head beside it."""
        from shunter.post.layout import PAIR

        pairs = [pair for each in read for pair in each.items]
        longest = max(max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in pairs)
        return self.learner(course, units, longest, PAIR, head)

    def learner(
        self,
        course: Course,
        units: int,
        longest: int,
        unit: Unit,
        head: nn.Linear | None = None,
        *,
        temperature: float = 1.0,
        lr: float | None = None,
    ) -> Pupil:
        """The one that learns from so many units a step, of samples of at most `longest` tokens. temperature,
        lr: as in `Pupil`."""
        from shunter.post.course import Pupil
        from shunter.post.laid_out_pupil import LaidOutPupil

        config, self.head = self.context.config, head
        if self.world is None:
            self._pupil = Pupil(
                self.decoder, config.train, course.device, value=head, temperature=temperature, lr=lr
            )
            return self._pupil
        self._pupil = LaidOutPupil(
            self.decoder,
            config.train,
            self.world,
            config.how.parallel,
            units=units,
            longest=longest,
            micro_tokens=config.how.micro_tokens,
            fill=self.fill,
            value=head,
            temperature=temperature,
            lr=lr,
            unit=unit,
        )
        return self._pupil

    def account(self, shape: Shape, *, scores: bool = True) -> dict[str, Any]:
        """What it took beside what was predicted; see `pairs_account`. Nothing on ranks other than the
        first."""
        if self.world is not None and self.world.rank:
            return {}
        from shunter.post.laid_out_pupil import LaidOutPupil

        parallel = self._pupil.parallel if isinstance(self._pupil, LaidOutPupil) else None
        return pairs_account.account(self.context, self.spec, shape, parallel, scores=scores)

    def whole(self) -> Decoder | None:
        """With what was learnt; the head has it too. None on ranks other than the first."""
        from shunter.post.laid_out_pupil import LaidOutPupil

        if isinstance(self._pupil, LaidOutPupil) and not self._pupil.publish(self._whole, self.head):
            return None
        return self._whole
