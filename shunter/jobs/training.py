"""What `pretrain` and `sft` share: rows in, a trained model's folder out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shunter.config.errors import ShunterError
from shunter.jobs import adapters
from shunter.jobs.layouts import GUESSED_VOCABULARY
from shunter.models.spec import DecoderShape, DecoderSpec
from shunter.recipe.job import JobContext, Pace
from shunter.record.track import check_trackers
from shunter.schedule.action import WEIGHT
from shunter.schedule.order import Order
from shunter.surgery.config import AdapterConfig
from shunter.train.config import Parallel, TrainConfig, TrainHow
from shunter.train.layout_check import check_dropout, check_layout

if TYPE_CHECKING:
    from shunter.models.decoder import Decoder
    from shunter.parallel.part import Fill
    from shunter.train.loop import Milestone, Training

MakeMilestone = Callable[["Decoder"], "Milestone"]  # of the model that it shall look at


def check_how(
    how: TrainHow, train: TrainConfig, base: Path, shape: DecoderShape | None = None
) -> Sequence[str]:
    """What can be refused without torch: missing trackers, a missing compiler, a pipeline that cannot be.

    shape: of the model, where that is known beforehand.
    """
    check_trackers(how.track)
    check_dropout(train.dropout, shape)
    if how.parallel is not None:
        check_parallel(how, how.parallel.located(base), train, shape)
    if how.compile and shutil.which("c++") is None and shutil.which("g++") is None:
        raise ShunterError(
            "how.compile needs a C++ compiler, and there is none", mend="Install g++, or set it false."
        )
    if how.compile_memory < 1 and not how.compile:
        raise ShunterError(
            "compile_memory says what a compiled model keeps, and none is compiled",
            where="how.compile_memory",
            mend="Set how.compile to true, or ask for how.parallel.recompute.",
        )
    return []


def check_parallel(how: TrainHow, parallel: Parallel, train: TrainConfig, shape: DecoderShape | None) -> None:
    """Raise ShunterError for a pipeline that this training cannot have."""
    where = "how.parallel"
    parallel = parallel.settled(train.batch_rows, how.micro_batch)
    order = parallel.order()
    check_combination(parallel)
    if parallel.gather == "bf16" and train.precision != "bf16":
        auto = "precision auto may choose float32, whose products take weights whole"
        whole = f"products of precision {train.precision} take weights whole"
        raise ShunterError(
            f"gather: bf16 rounds weights, and {auto if train.precision == 'auto' else whole}",
            where=where,
            mend="Set train.precision to bf16, or leave gather out.",
        )
    if shape is not None:
        spec = DecoderSpec(**shape.model_dump(), vocab_size=GUESSED_VOCABULARY, max_positions=1 << 20)
        check_layout(spec, parallel, order)
    if train.restart is not None:
        raise ShunterError("a planned restart works in one process only", where=where, mend="Remove one.")
    if how.compile:
        check_compiled(parallel, order)


def check_compiled(parallel: Parallel, order: Order) -> None:
    """Raise ShunterError for layouts whose layers cannot be compiled."""
    if parallel.recompute == "selective":
        raise ShunterError(
            "recompute: selective looks at single operations, and a compiled layer is one",
            where="how.parallel",
            mend="Use recompute: full, or set how.compile to false.",
        )
    if parallel.offload:
        raise ShunterError(
            "offload looks at what single operations keep, and a compiled layer is one",
            where="how.parallel",
            mend="Leave offload out, or set how.compile to false.",
        )
    if any(action.op == WEIGHT for actions in order.actions for action in actions):
        raise ShunterError(
            f"{parallel.schedule} takes gradients of weights later, and a compiled layer takes them at once",
            where="how.parallel",
            mend="Use 1f1b or interleaved-1f1b, or set how.compile to false.",
        )


def check_combination(parallel: Parallel) -> None:
    """Raise ShunterError for choices that do not go together."""
    grid, where = parallel.grid, "how.parallel"
    if parallel.vocabulary is not None and (grid.tp > 1 or grid.fsdp > 1):
        other = "tp" if grid.tp > 1 else "fsdp"
        raise ShunterError(
            f"vocabulary and {other} both cut embedding and head", where=where, mend="Leave vocabulary out."
        )


class Beginnings:
    """What `pretrain` and `sft` say of a run by its beginning (arXiv 2412.13337, `evaluate.early`)."""

    compared: ClassVar[frozenset[str]] = frozenset({"train", "seed", "adapter", "like"})

    def pace(self, config: Any) -> Pace:
        """In rows, which are what is sampled here."""
        return Pace(config.train.steps, config.train.batch_rows, config.how.log_every)

    def judge(
        self, logs: Mapping[str, tuple[Path, int]], samples: int, share: float, tolerance: float
    ) -> tuple[Mapping[str, float], set[str]]:
        """The lowest share by the early score, but for those within `tolerance` of the best of them."""
        from shunter.evaluate import early

        runs = {name: early.read(path, batch) for name, (path, batch) in logs.items()}
        found = early.scores(runs, samples)
        return found, early.stopped(found, share=share, tolerance=tolerance)


def disk_bytes(shape: DecoderShape, how: TrainHow) -> int:
    """Bytes of the model and of its checkpoints, one more than are kept while the newest is written."""
    weights = shape.product_weights(active=False) + GUESSED_VOCABULARY * shape.dim * (1 if shape.tied else 2)
    return 4 * weights * (1 + 3 * (how.keep + 1))


def train(
    context: JobContext[Any],
    decoder: Decoder,
    tokens: Path,
    milestone: MakeMilestone | None = None,
    adapter: AdapterConfig | None = None,
    fill: Fill | None = None,
) -> dict[str, Any]:
    """Train `decoder` on a `tokens` artefact and write the model's folder; returns headline metrics.

    adapter: what was attached to it, if anything was: the model is written merged, the adapters beside it.
    fill: first values of a decoder on the meta device, if they are not to be drawn.
    On several ranks each calls it; rank 0 has the whole model at milestones and at the end.
    """
    from shunter.data.tokenizer import Tokenizer
    from shunter.data.tokens import TokenRows
    from shunter.models.decoder import Decoder
    from shunter.models.hf import save_model
    from shunter.train.loop import Place, Training
    from shunter.train.objective import CrossEntropy
    from shunter.train.world import World

    rows, heldout = TokenRows(tokens / "train"), TokenRows(tokens / "heldout")
    if rows.vocab_size > decoder.spec.vocab_size:
        raise ShunterError(
            f"the rows have a vocabulary of {rows.vocab_size}, the model one of {decoder.spec.vocab_size}",
            mend="Make the rows with the model's tokenizer (`tokenizer:` may name the model's job).",
        )
    if rows.row_length > decoder.spec.max_positions:
        raise ShunterError(
            f"rows of {rows.row_length} tokens exceed the model's context of {decoder.spec.max_positions}",
            mend="Make shorter rows.",
        )
    place = Place(context.name, context.work, context.log, context.events, context.control)
    config = context.config
    world = context.world
    assert world is None or isinstance(world, World)
    # Rank 0 alone will have room for the whole, now and then: the others only hand in their part.
    whole = bare(decoder) if world is not None and world.rank == 0 else decoder
    plain = Decoder(decoder.spec) if milestone is not None and adapter is not None else whole
    look = milestone(plain) if milestone is not None else None
    if look is not None and adapter is not None:
        look = adapters.looking(look, plain, whole)
    training = Training(
        decoder,
        CrossEntropy(),
        rows,
        heldout if heldout.num_rows else None,
        config.train,
        config.how,
        place,
        seed=config.seed,
        milestone=look,
        world=world,
        fill=fill,
    )
    if world is not None and look is not None:
        training.milestone = _together(look, training, whole)
    metrics = training.run()
    if training.layout is not None and not training.layout.gather(whole):
        return metrics
    if adapter is not None:
        whole = adapters.publish(whole, adapter, context.out)
    tokenizer = Tokenizer.load(tokens / "tokenizer")
    save_model(
        whole.cpu(),
        context.out,
        tokenizer_folder=tokens / "tokenizer",
        eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokenizer.pad,
        bos_token_id=tokenizer.bos,
    )
    return metrics


def bare(decoder: Decoder) -> Decoder:
    """A decoder to bring all ranks' weights together in; until then it has none."""
    import copy

    from torch import nn

    empty: dict[int, Any] = {}
    for parameter in decoder.parameters():
        bare = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        empty[id(parameter)] = bare
    empty |= {id(buffer): buffer.to("meta") for buffer in decoder.buffers()}
    return copy.deepcopy(decoder, empty)


def _together(look: Milestone, training: Training, whole: Decoder) -> Milestone:
    """A milestone on rank 0, for which the others hand in their weights, and wait."""

    def collective(step: int, tokens: int) -> Mapping[str, float]:
        assert training.layout is not None
        if not training.layout.gather(whole):
            return {}
        found = look(step, tokens)
        whole.to("meta")
        return found

    return collective
