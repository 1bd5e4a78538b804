"""What jobs after pre-training share: the model in, the model out, and rewards by configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.jobs import adapters, models
from shunter.post.config import PostHow, RewardConfig
from shunter.recipe.job import JobContext
from shunter.record.track import check_trackers
from shunter.surgery.config import AdapterConfig

if TYPE_CHECKING:
    import torch

    from shunter.data.tokenizer import Tokenizer
    from shunter.models.decoder import Decoder
    from shunter.post.rewards import Grader
    from shunter.train.loop import Place


def check_how(how: PostHow) -> None:
    """Refuse what can be refused without torch."""
    check_trackers(how.track)


def check_rewards(rewards: Sequence[RewardConfig], reward_model: str | None, base: Path) -> None:
    """Raise ShunterError for rewards that cannot be given here."""
    for reward in rewards:
        if reward.kind in ("code", "checker"):
            from shunter.post.sandbox.checker import check

            check(reward, base)
    kinds = [reward.kind for reward in rewards]
    labels = [reward.label for reward in rewards]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ShunterError(
            f"two rewards are called {twice}", where="rewards", mend="Give each a `name` of its own."
        )
    if kinds.count("model") > 1:
        raise ShunterError("there is one reward model", where="rewards", mend="Leave one reward out.")
    if ("model" in kinds) != (reward_model is not None):
        raise ShunterError(
            "a reward of the kind model and `reward_model`, the job that made it, belong together",
            where="rewards",
        )


def reads(rewards: Sequence[RewardConfig], base: Path) -> list[Path]:
    """The files that tell the languages of programs, and checkers: another content makes another job."""
    from shunter.post.sandbox.languages import LANGUAGES

    run = [each for each in rewards if each.kind in ("code", "checker")]
    names = [each.language for each in run if each.language not in LANGUAGES]
    names += [each.file for each in run if each.file is not None]
    return [base / name for name in dict.fromkeys(names) if (base / name).is_file()]


def prefix(rewards: Sequence[RewardConfig], base: Path) -> str:
    """What a model is told before each problem while it learns, by the language of its programs."""
    from shunter.post.sandbox.languages import language

    told = [language(each.language, base).prompt for each in rewards if each.kind == "code"]
    return "".join(dict.fromkeys(told))


def place(context: JobContext[Any]) -> Place:
    """Where a job's training writes and whom it listens to."""
    from shunter.train.loop import Place

    return Place(context.name, context.work, context.log, context.events, context.control)


def opened(folder: Path) -> Tokenizer:
    """A model's tokenizer, which must have a chat template."""
    from shunter.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder)
    if not tokenizer.template:
        raise ShunterError(
            "the model's tokenizer has no chat template, so it cannot be asked anything",
            where=str(folder),
            mend="Put a chat_template.jinja beside it.",
        )
    return tokenizer


def save(decoder: Decoder, source: Path, out: Path, adapter: AdapterConfig | None = None) -> None:
    """Write the model's folder, with the tokenizer and the special tokens of the one that it began with; of
    one with adapters these beside it, and the model with them merged."""
    from shunter.models.hf import save_model

    if adapter is not None:
        decoder = adapters.publish(decoder, adapter, out)
    save_model(decoder.cpu(), out, tokenizer_folder=source, **models.special(source))


def grader(
    rewards: Sequence[RewardConfig],
    context: JobContext[Any],
    device: torch.device,
    *,
    unfinished: float | None = None,
    patient: bool = False,
    beside: bool = False,
) -> Grader:
    """All rules with their weights. A reward model is the artefact of the field `reward_model`. beside: for
    a thread beside the main one."""
    from shunter.post.aside import Aside
    from shunter.post.rewards import Grader, Rule, Verified, named, rule

    rules: list[tuple[Rule, float]] = []
    for config in rewards:
        if config.kind == "model":
            from shunter.post.reward_model import Learnt

            made: Rule = Learnt.load(context.one("reward_model").path, device)
        elif config.kind in ("code", "checker"):
            from shunter.post.sandbox.checker import sandboxed

            made = sandboxed(config, context.base)
            context.events.write("sandbox", limits=made.box.limits)
        else:
            made = rule(config)
            if beside and isinstance(made, Verified):
                made = Aside(config, made)
        rules.append((named(made, config), config.weight))
    return Grader(rules, unfinished=unfinished, seed=context.config.seed, patient=patient)
