"""What `rl` is put together from: who writes, what the first model says, and what goes with a layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.jobs import models, taught
from shunter.post.layout import ANSWER, check_parallel
from shunter.recipe.job import JobContext

if TYPE_CHECKING:
    from shunter.generate.config import SamplingConfig
    from shunter.generate.served import ServedEngine
    from shunter.generate.toolbox import Toolbox
    from shunter.jobs.rl import RlConfig
    from shunter.models.decoder import Decoder
    from shunter.models.spec import DecoderSpec
    from shunter.post.cores import Cores
    from shunter.post.course import Course, Pupil
    from shunter.post.delayed import Delayed
    from shunter.post.rewards import Grading
    from shunter.post.step import Scorer
    from shunter.post.writers import Writer


_KIN = "Make it with reward_model, from the model that is tuned or one of its kind."


def check_laid_out(config: RlConfig, base: Path) -> None:
    """Raise ShunterError for what does not go with `how.parallel`, and for layouts that cannot be."""
    how = config.how
    if how.parallel is None:
        return
    apart = "the ranks of a layout write and learn in turns, always with the newest weights"
    for where, given, why in (
        (
            "how.placement",
            how.placement is not None,
            "roles have processes of their own, and so has a layout",
        ),
        ("staleness", config.staleness > 0, apart),
        ("how.writer", config.apart, apart),
        ("generator", config.generator != "own", "a server writes for a learner in one process so far"),
        (
            "policy.least_groups",
            config.policy.least_groups > 1,
            "an update of as many groups as have come together may have too few answers for a layout's ranks",
        ),
    ):
        if given:
            raise ShunterError(why, where=where, mend=f"Leave out either how.parallel or {where}.")
    if how.parallel.timeline is not None:
        raise ShunterError(
            "steps of rl are not recorded rank by rank",
            where="how.parallel.timeline",
            mend="Leave it out.",
        )
    check_parallel(
        how,
        config.train,
        config.answers // config.policy.updates,
        base,
        value=config.policy.algorithm == "ppo",
        adapter=config.adapter is not None,
        unit=ANSWER,
    )


def reference(config: RlConfig, folder: Path, policy: Pupil, precision: str) -> Callable[[], Scorer] | None:
    """Makes what tells how likely the first model finds answers; None where nobody asks, so that its memory
    is not paid for. A policy with adapters holds the first model anyway. Call it before a run resumes."""
    from shunter.models.hf import load_model
    from shunter.post.before import Before, LaidOutBefore
    from shunter.post.laid_out import LaidOutScorer
    from shunter.post.step import Scorer

    scorer, temperature = policy.scorer, config.temperature
    device = scorer.device
    before: Scorer
    if config.adapter is not None:
        before = Before(scorer.decoder, device, precision, temperature=temperature)
        return lambda: before
    if not (config.policy.kl or config.how.divergence):
        return None
    if isinstance(scorer, LaidOutScorer):
        before = LaidOutBefore(scorer)
        return lambda: before
    return lambda: Scorer(load_model(folder).to(device), device, precision, temperature=temperature)


def value_model(context: JobContext[RlConfig], spec: DecoderSpec, longest: int) -> Path | None:
    """The folder of the reward model that the value model begins as; None: as the policy, whose spec this is.
    Raises ShunterError for one that cannot read the policy's texts, of at most `longest` tokens, or that has
    another tokenizer."""
    from shunter.models.hf import read_spec

    if context.config.value_model is None:
        return None
    folder = context.one("value_model").path
    theirs = read_spec(folder)
    for what, has, ours, fits in (
        ("vocabulary", theirs.vocab_size, spec.vocab_size, theirs.vocab_size == spec.vocab_size),
        ("context", theirs.max_positions, longest, theirs.max_positions >= longest),
    ):
        if not fits:
            raise ShunterError(
                f"the value model is to read the policy's texts, with a {what} of {ours} tokens, and the "
                f"reward model that it begins as has one of {has}",
                where="value_model",
                mend=_KIN,
            )
    _check_tokens(context, folder, "value_model")
    return folder


def reward_model(context: JobContext[RlConfig]) -> Path | None:
    """The folder of the reward model that answers are graded by; None without. Raises ShunterError for one of
    another tokenizer."""
    if context.config.reward_model is None:
        return None
    folder = context.one("reward_model").path
    _check_tokens(context, folder, "reward_model")
    return folder


def _check_tokens(context: JobContext[RlConfig], folder: Path, where: str) -> None:
    """Raise ShunterError for a model to which the policy's tokens, which it reads as they are, are others."""
    from shunter.data.tokenizer import Tokenizer

    policy, name = context.one("model").path, "tokenizer.json"
    if (folder / name).is_file() and (folder / name).read_bytes() == (policy / name).read_bytes():
        return
    theirs, ours = (Tokenizer.load(each).engine.get_vocab() for each in (folder, policy))
    if other := sorted((number, token) for token, number in ours.items() if theirs.get(token) != number):
        number, token = other[0]
        raise ShunterError(
            "the reward model is to read the very tokens that the policy reads and writes, and has another "
            f"tokenizer: {len(other)} of {len(ours)} tokens are others to it, the first {number} ({token!r})",
            where=where,
            mend=_KIN,
        )


def grader(config: RlConfig, context: JobContext[RlConfig], course: Course) -> Grading:
    """All rules; of several ranks the first has them. Raises ShunterError as `reward_model`."""
    if course.world is not None and course.world.rank > 0:
        from shunter.post.laid_out_rl import Elsewhere

        return Elsewhere()
    reward_model(context)
    meanwhile = config.apart or config.staleness > 0
    return taught.grader(config.rewards, context, course.device, unfinished=config.cut_off, beside=meanwhile)


def server(config: RlConfig, folder: Path, work: Path) -> dict[str, Any] | None:
    """What a process beside this one is told of the server that writes; None without."""
    if config.generator == "own":
        return None
    assert config.how.server is not None
    return {
        "kind": config.generator,
        "config": config.how.server.model_dump(mode="json"),
        "folder": str(_aside(config, work).absolute()),
        "special": models.special(folder),
    }


def served(
    config: RlConfig,
    folder: Path,
    work: Path,
    decoder: Decoder,
    sampling: SamplingConfig,
    ends: set[int],
    tools: Toolbox | None,
) -> ServedEngine:
    """A server that writes for this process, with the decoder's weights. ends: tokens that end an answer."""
    from shunter.generate.served import ServedEngine
    from shunter.models.hf import save_model
    from shunter.surgery.lora import merged

    assert config.how.server is not None
    assert config.generator != "own"
    special = models.special(folder)
    return ServedEngine(
        config.generator,
        config.how.server,
        sampling,
        ends,
        save=lambda out: save_model(
            decoder if config.adapter is None else merged(decoder), out, tokenizer_folder=folder, **special
        ),
        folder=_aside(config, work),
        context=decoder.spec.max_positions,
        reply=tools,
    )


def _aside(config: RlConfig, work: Path) -> Path:
    """Where the server finds new weights."""
    assert config.how.server is not None
    place = config.how.server.folder
    return work / "served" if place is None else Path(place)


def held_beside(config: RlConfig, model: Decoder, batch: int, devices: Sequence[str], room: int) -> int:
    """Bytes of this machine's memory that processes hold which write with a copy of this model, one on each
    of the devices. batch, room: answers side by side on all of them, and tokens of the longest text."""
    import torch

    from shunter.post.room import writer_bytes

    weight = model.embed.weight
    each = 0 if config.generator != "own" else -(-batch // len(devices))
    block, cache = config.how.block, config.how.cache
    found = writer_bytes(
        model.spec, weight.itemsize, each, room, block, cache, copies=weight.dtype == torch.float32
    )
    return found * sum(device == "cpu" for device in devices)


def cores(config: RlConfig, count: int, writers: int) -> Cores | None:
    """What the learner shares with so many processes that write on the CPU; None where each keeps its own:
    where a person has said how many, and where bits, which depend on them, must be the same. A server's work
    is not seen here."""
    from shunter.post.cores import Cores

    fixed = config.how.threads or config.how.deterministic or config.generator != "own"
    return None if fixed or not writers else Cores.shared(count, 1 + writers)


def beside(
    config: RlConfig, folder: Path, work: Path, devices: Sequence[str], threads: int, lessons: Delayed
) -> Writer:
    """Processes that write, one on each of the devices, with so many threads each."""
    from shunter.post.beside import SILENT, Beside, Several

    spoken = server(config, folder, work)
    sampling = lessons.sampling.model_copy(update={"batch": -(-lessons.sampling.batch // len(devices))})
    found: list[Beside] = []
    try:
        for device in devices:
            made = Beside(
                folder,
                lessons.journal.folder,
                sampling,
                lessons.hear,
                seed=lessons.seed,
                stops=sorted(lessons.stops),
                room=lessons.room,
                threads=threads,
                exact=lessons.exact,
                whole=config.how.swap == "steps",
                device=device,
                precision=lessons.policy.scorer.precision,
                tools=lessons.tools,
                server=spoken,
                # A server may be silent for as long as one request may take.
                timeout=SILENT + (0.0 if spoken is None else float(spoken["config"]["timeout"])),
                said=found[0].said if found else None,
                block=lessons.block,
                cache=lessons.cache,
                cores=lessons.cores if device == "cpu" else None,
                place=1 + sum(each == "cpu" for each in devices[: len(found)]),
            )
            found.append(made)
    except BaseException:
        for each in found:
            each.close()
        raise
    return found[0] if len(found) == 1 else Several(found, lessons.group)
