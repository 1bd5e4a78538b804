"""The job `rl`: a model learns from rewards of what it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.generate.config import ToolConfig
from shunter.jobs import adapters, models, placed, taught
from shunter.post.config import PolicyConfig, PostTrain, RewardConfig, RlHow
from shunter.recipe.job import Input, JobConfig, JobContext
from shunter.surgery.config import AdapterConfig

if TYPE_CHECKING:
    from shunter.post.delayed import Delayed
    from shunter.post.writers import Writer


class RlConfig(JobConfig):
    """Tunes a model by what its answers are worth."""

    model: Annotated[str, Input("model")] = Field(description="Job whose model is tuned.")
    prompts: Annotated[str, Input("conversations")] = Field(
        description="Job that made the conversations: what is asked, and with the assistant's last message, "
        "or in the fields that rewards name, what the answer is compared with."
    )
    task: str | None = Field(None, description="Conversations to ask: those of this task; none: all.")
    rewards: list[RewardConfig] = Field(min_length=1, description="What an answer is worth: a weighted sum.")
    unfinished: float | None = Field(
        None, description="Reward of an answer that was cut off, whatever it says; none: as if it had ended."
    )
    reward_model: Annotated[str | None, Input("reward")] = Field(
        None, description="Job that made the reward model, for a reward of the kind model."
    )
    policy: PolicyConfig = Field(PolicyConfig(), description="How rewards become a gradient.")
    group: int = Field(8, ge=1, description="Answers to each prompt.")
    prompts_per_step: int = Field(16, ge=1, description="Prompts in a step.")
    max_new_tokens: int = Field(64, ge=1, description="Longest answer in tokens.")
    temperature: float = Field(1.0, gt=0, description="Of sampling, and of the policy that learns.")
    tools: ToolConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # jobs without are those that they were before there were any
        description="Tools that the model may ask while it answers; `max_new_tokens` counts what it writes "
        "in all turns together.",
    )
    generator: Literal["own", "vllm", "sglang"] = Field(
        "own",
        exclude_if=lambda value: value == "own",
        description="Who writes the answers: own, or a server, where `how.server` says.",
    )
    staleness: int = Field(
        0,
        ge=0,
        le=64,
        exclude_if=lambda value: value == 0,  # as before there was a choice
        description="Steps by which the weights that write an answer may be older than those that learn from "
        "it. 0: writing waits for every update; 1 or more: it goes on meanwhile.",
    )
    max_gap: float | None = Field(
        None,
        gt=0,
        description="Largest difference of log-probabilities between trainer and generator, nats a token in "
        "the mean; more stops the run. Default: 0.0001, and 0.02 where bfloat16 or a server computes.",
    )
    adapter: AdapterConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # jobs without one are what they were before there was any
        description="Train low-rank adapters instead of all weights, and merge them; the reference is the "
        "model under them.",
    )
    train: PostTrain = Field(description="How long, how fast, with which optimizer.")
    how: RlHow = Field(default_factory=RlHow, description="Choices that must not change the result.")

    @model_validator(mode="after")
    def _comparable(self) -> RlConfig:
        if self.group < 2 and self.policy.compares:
            raise ValueError(
                f"{self.policy.algorithm} compares answers to one prompt: group must be 2 or more"
            )
        served = self.generator != "own"
        if served != (self.how.server is not None):
            raise ValueError("generator, vllm or sglang, and how.server, where it is, belong together")
        if served and (self.how.placement is not None or self.how.deterministic):
            raise ValueError("a server draws by itself, so it goes with neither deterministic nor placement")
        if self.apart and self.adapter is not None:
            raise ValueError("another process writes with whole models so far: leave adapter out")
        if self.how.writer != "auto" and self.how.placement is not None:
            raise ValueError("how.writer says nothing where roles are placed; leave one of the two out")
        if self.how.swap != "tokens" and not self.apart:
            raise ValueError("how.swap is of processes beside this one: set how.writer to process")
        if self.how.writers is not None and not self.apart:
            raise ValueError("how.writers are processes beside this one: set how.writer to process")
        if len(self.how.writers or ()) > 1 and (served or self.how.deterministic):
            raise ValueError(
                "several writers go with neither a server, which is one, nor deterministic: what is written "
                "side by side rounds otherwise"
            )
        answers = self.group * self.prompts_per_step
        if self.policy.updates > answers:
            raise ValueError(f"a step's {answers} answers cannot be cut into {self.policy.updates} updates")
        if self.policy.least_groups > 1 and (self.staleness or self.how.placement is not None):
            raise ValueError(
                "policy.least_groups lets answers wait, which goes with neither staleness nor how.placement "
                "so far"
            )
        return self

    @property
    def apart(self) -> bool:
        """Whether another process writes."""
        if self.how.placement is not None:
            return False
        return self.how.writer == "process" or (self.how.writer == "auto" and self.staleness > 0)

    def largest_gap(self, precision: str) -> float:
        """The bound on the gap where models compute in this precision.

        In float32 both differ by about 1e-5; weights one small update old differ by a hundred times that."""
        if self.max_gap is not None:
            return self.max_gap
        exact = precision == "fp32" and self.generator == "own"
        return (1e-4 if exact else 0.02) / min(1.0, self.temperature)


class RlJob:
    """Writes a Hugging Face model folder, with samples.jsonl and rewards.json in it, and `adapter/` where
    adapters were trained."""

    kind: ClassVar[str] = "rl"
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = RlConfig

    def check(self, config: RlConfig, base: Path) -> Sequence[str]:
        taught.check_how(config.how)
        taught.check_rewards(config.rewards, config.reward_model, base)
        if config.how.placement is not None:
            placed.check(config)
        return []

    def reads(self, config: RlConfig, base: Path) -> Sequence[Path]:
        return taught.reads(config.rewards, base)

    def run(self, context: JobContext[RlConfig]) -> dict[str, Any]:
        from shunter.data.tokenizer import Tokenizer
        from shunter.generate.config import SamplingConfig
        from shunter.generate.served import ServedEngine
        from shunter.generate.toolbox import Toolbox
        from shunter.models.hf import load_model, save_model
        from shunter.post.before import Before
        from shunter.post.course import Course, Pupil
        from shunter.post.delayed import Delayed
        from shunter.post.prompts import read_prompts
        from shunter.post.reinforce import Reinforcement
        from shunter.post.reward_model import new_head
        from shunter.post.step import Scorer
        from shunter.surgery.lora import merged
        from shunter.train.device import choose_precision

        config = context.config
        if config.how.placement is not None:
            return placed.run(context)
        if (context.work / "placed.json").exists():
            raise ShunterError(
                "this training was begun with how.placement, and its checkpoints are of another form",
                where="how.placement",
                mend="Give it again, or begin anew with --redo.",
            )
        folder = context.one("model").path
        tokenizer: Tokenizer = taught.opened(folder)
        decoder, _ = adapters.load(folder, config.adapter, config.seed)
        room = decoder.spec.max_positions - config.max_new_tokens
        if room < 1:
            raise ShunterError(
                f"{config.max_new_tokens} new tokens fill the context of {decoder.spec.max_positions}",
                where=context.name,
                mend="Lower max_new_tokens.",
            )
        train = context.one("prompts").path / "train.jsonl"
        prefix = taught.prefix(config.rewards, context.base)
        prompts = read_prompts(train, tokenizer, config.task, room, prefix, config.rewards)
        if prompts.too_long:
            context.events.write("problem", problem=f"{prompts.too_long} prompts are too long and left out")
        for told in prompts.told:
            context.events.write("problem", problem=told)
        course = Course(config.train, config.how, taught.place(context), "rl/reward")
        device = course.device
        policy = Pupil(decoder, config.train, device, temperature=config.temperature)
        # In the policy's precision: the divergence begins at 0, not at what rounding makes of it.
        precision = choose_precision(config.train.precision, device)
        if config.adapter is None:
            first = load_model(folder).to(device)
            before = Scorer(first, device, precision, temperature=config.temperature)
        else:
            before = Before(decoder, device, precision, temperature=config.temperature)
        critic = None
        if config.policy.algorithm == "ppo":
            body, _ = adapters.load(folder, config.adapter, config.seed)
            rate = config.policy.value_lr
            critic = Pupil(body, config.train, device, value=new_head(body.spec.dim), lr=rate)
        tools = None if config.tools is None else Toolbox(config.tools, tokenizer)
        at_once = min(config.group * config.prompts_per_step, config.how.at_once)
        sampling = SamplingConfig(
            temperature=config.temperature, max_new_tokens=config.max_new_tokens, batch=at_once
        )
        engine = None
        server: dict[str, Any] | None = None
        if config.generator != "own":
            assert config.how.server is not None
            place = config.how.server.folder
            aside = context.work / "served" if place is None else Path(place)
            special = models.special(folder)
            if config.apart:
                spoken = config.how.server.model_dump(mode="json")
                server = {"kind": config.generator, "config": spoken, "folder": str(aside.absolute())}
                server["special"] = special
            else:
                engine = ServedEngine(
                    config.generator,
                    config.how.server,
                    sampling,
                    {*tokenizer.stop_ids, *stops(folder)},
                    save=lambda out: save_model(
                        decoder if config.adapter is None else merged(decoder),
                        out,
                        tokenizer_folder=folder,
                        **special,
                    ),
                    folder=aside,
                    context=decoder.spec.max_positions,
                    reply=tools,
                )
        kind: Any = Reinforcement
        if config.apart:
            devices = config.how.writers or [str(course.device)]
            here = sum(each == "cpu" for each in devices)  # what writes elsewhere takes no core
            threads = config.how.threads or max(1, course.threads // (here + 1))
            course.threads = config.how.threads or max(1, course.threads - threads * here)
            beside = partial(_beside, folder, devices, threads, server, config.how.swap == "steps")
            kind = partial(Delayed, staleness=config.staleness, beside=beside, early=config.how.early)
        elif config.staleness:
            kind = partial(Delayed, staleness=config.staleness, early=config.how.early)
        lessons: Reinforcement = kind(
            course,
            policy,
            before,
            critic,
            prompts,
            tokenizer,
            taught.grader(
                config.rewards,
                context,
                device,
                unfinished=config.unfinished,
                beside=kind is not Reinforcement,
            ),
            config.policy,
            sampling,
            group=config.group,
            per_step=config.prompts_per_step,
            max_gap=config.largest_gap(precision),
            seed=config.seed,
            stop_ids=stops(folder),
            tools=tools,
            engine=engine,
        )
        try:
            course.run(lessons)
        finally:
            lessons.close()
        taught.save(decoder, folder, context.out, config.adapter)
        rewards = lessons.rewards
        share = max(1, len(rewards) // 10)
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in lessons.samples]
        (context.out / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
        (context.out / "rewards.json").write_text(json.dumps(rewards) + "\n", encoding="utf-8")
        return {
            "reward_first": sum(rewards[:share]) / share,
            "reward_last": sum(rewards[-share:]) / share,
            "max_gap": lessons.most_gap,
            "prompts": prompts.num_rows,
            "too_long": prompts.too_long,
            "not_graded": sum(lessons.grader.failures.values()),
            "skipped": len(course.skipped),
            "parameters": decoder.spec.num_parameters,
        }


def _beside(
    folder: Path,
    devices: Sequence[str],
    threads: int,
    server: dict[str, Any] | None,
    whole: bool,
    lessons: Delayed,
) -> Writer:
    """Processes that write, one on each of the devices."""
    from shunter.post.beside import SILENT, Beside, Several

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
                whole=whole,
                device=device,
                tools=lessons.tools,
                server=server,
                # A server may be silent for as long as one request may take.
                timeout=SILENT + (0.0 if server is None else float(server["config"]["timeout"])),
                said=found[0].said if found else None,
            )
            found.append(made)
    except BaseException:
        for each in found:
            each.close()
        raise
    return found[0] if len(found) == 1 else Several(found, lessons.group)


def stops(folder: Path) -> list[int]:
    """Tokens that end an answer by the model's own configuration."""
    found: list[int] = models.special(folder)["eos_token_id"]
    return found


JOB = RlJob()
