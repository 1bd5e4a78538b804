"""The job `rl`: a model learns from rewards of what it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.generate.config import ToolConfig
from shunter.jobs import contexts, models, placed, ranks, rl_account, rl_parts, taught
from shunter.post.config import PolicyConfig, PostTrain, RewardConfig, RlHow
from shunter.recipe.graph import Graph, Node
from shunter.recipe.job import Input, JobConfig, JobContext
from shunter.surgery.config import AdapterConfig


class RlConfig(JobConfig):
    """Tunes a model by what its answers are worth."""

    model: Annotated[str, Input("model")] = Field(description="Job whose model is tuned.")
    prompts: Annotated[str, Input("conversations")] = Field(
        description="Job that made the conversations: what is asked, and with the assistant's last message, "
        "or in the fields that rewards name, what the answer is compared with."
    )
    task: str | None = Field(None, description="Conversations to ask: those of this task; none: all.")
    rewards: list[RewardConfig] = Field(min_length=1, description="What an answer is worth: a weighted sum.")
    unfinished: float | Literal["mask"] | None = Field(
        None,
        description="Reward of an answer that was cut off, whatever it says; none: as if it had ended; mask: "
        "likewise, and it counts in the mean of its group, but is not learnt from.",
    )
    reward_model: Annotated[str | None, Input("reward")] = Field(
        None, description="Job that made the reward model, for a reward of the kind model."
    )
    value_model: Annotated[str | None, Input("reward")] = Field(
        None,
        exclude_if=lambda value: value is None,  # jobs without are those that they were before there were any
        description="ppo: job that made the reward model with whose weights and head the value model begins; "
        "none: with the policy's weights and a head of zeros.",
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
        if self.how.writer != "auto" and self.how.placement is not None:
            raise ValueError("how.writer says nothing where roles are placed; leave one of the two out")
        if self.how.swap != "tokens" and not self.apart:
            raise ValueError("how.swap is of processes beside this one: set how.writer to process")
        if (self.how.block, self.how.cache) != (8, 0) and (served or self.how.placement is not None):
            raise ValueError("how.block and how.cache are of our own writer: roles and servers have theirs")
        if self.how.writers is not None and not self.apart:
            raise ValueError("how.writers are processes beside this one: set how.writer to process")
        if len(self.how.writers or ()) > 1 and (served or self.how.deterministic):
            raise ValueError(
                "several writers go with neither a server, which is one, nor deterministic: what is written "
                "side by side rounds otherwise"
            )
        if self.policy.updates > self.answers:
            raise ValueError(
                f"a step's {self.answers} answers cannot be cut into {self.policy.updates} updates"
            )
        if self.policy.least_groups > 1 and (self.staleness or self.how.placement is not None):
            raise ValueError(
                "policy.least_groups lets answers wait, which goes with neither staleness nor how.placement "
                "so far"
            )
        if self.value_model is not None and self.policy.algorithm != "ppo":
            raise ValueError(
                f"value_model belongs to ppo; {self.policy.algorithm} has no value model: leave it out"
            )
        if self.how.deterministic and self.tools is not None and "python" in self.tools.tools:
            raise ValueError(
                "the tool python does not go with how.deterministic: programs may print the time or draw lots"
            )
        if self.unfinished == "mask" and self.how.placement is not None:
            raise ValueError("unfinished: mask does not go with how.placement so far: leave one of them out")
        return self

    @property
    def answers(self) -> int:
        """Of a step."""
        return self.group * self.prompts_per_step

    @property
    def cut_off(self) -> float | None:
        """Reward of an answer that was cut off, whatever it says; None: what rewards say of it."""
        return None if self.unfinished == "mask" else self.unfinished

    @property
    def apart(self) -> bool:
        """Whether another process writes."""
        if self.how.placement is not None:
            return False
        return self.how.writer == "process" or (self.how.writer == "auto" and self.staleness > 0)

    def gap_allowed(self, precision: str) -> float:
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
        rl_parts.check_laid_out(config, base)
        if config.how.placement is not None:
            placed.check(config)
        return []

    def check_graph(self, node: Node, graph: Graph) -> Sequence[str]:
        config = node.config
        assert isinstance(config, RlConfig)
        return contexts.check(graph, node, "model", {"max_new_tokens": config.max_new_tokens})

    def reads(self, config: RlConfig, base: Path) -> Sequence[Path]:
        return taught.reads(config.rewards, base)

    def run(self, context: JobContext[RlConfig]) -> dict[str, Any]:
        config = context.config
        if config.how.placement is not None:
            return placed.run(context)
        if (context.work / "placed.json").exists():
            raise ShunterError(
                "this training was begun with how.placement, and its checkpoints are of another form",
                where="how.placement",
                mend="Give it again, or begin anew with --redo.",
            )
        if config.how.parallel is not None and context.world is None:
            return ranks.spread(context, config.how.parallel.located(context.base))
        with ExitStack() as held:
            return self._run(context, held)

    def _run(self, context: JobContext[RlConfig], held: ExitStack) -> dict[str, Any]:
        """held: what runs beside, to be ended whatever happens."""
        from shunter.data.tokenizer import Tokenizer
        from shunter.generate.config import SamplingConfig
        from shunter.generate.toolbox import Toolbox
        from shunter.jobs import pupils
        from shunter.post.delayed import Delayed
        from shunter.post.interpreter import Tools
        from shunter.post.layout import ANSWER
        from shunter.post.prompts import read_prompts
        from shunter.post.reinforce import Reinforcement, room_of
        from shunter.post.reward_model import load_head, new_head
        from shunter.record.memory import current_rss
        from shunter.surgery.lora import merged
        from shunter.train.device import choose_precision

        began = current_rss()
        config, folder = context.config, context.one("model").path
        tokenizer: Tokenizer = taught.opened(folder)
        model = pupils.Model.open(folder, context, config.adapter)
        room = model.spec.max_positions - config.max_new_tokens
        if room < 1:
            raise ShunterError(
                f"{config.max_new_tokens} new tokens fill the context of {model.spec.max_positions}",
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
        course = pupils.course(context, "rl/reward")
        device = course.device
        tools: Toolbox | None = None
        if config.tools is not None and config.apart:
            tools = Toolbox(config.tools, tokenizer, {})  # who writes asks them, and here they are counted
        elif config.tools is not None:
            tools = held.enter_context(Tools(config.tools, tokenizer))
        sampling = SamplingConfig(
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            batch=min(config.answers, config.how.at_once),
        )
        longest = room_of(prompts, sampling, model.spec, tools)
        units = config.answers // config.policy.updates
        policy = model.learner(course, units, longest, ANSWER, temperature=config.temperature)
        # In the policy's precision: the divergence begins at 0, not at what rounding makes of it.
        precision = choose_precision(config.train.precision, device)
        before = rl_parts.reference(config, folder, policy, precision)
        critic = None
        if config.policy.algorithm == "ppo":
            begins = rl_parts.value_model(context, model.spec, longest)
            beside = pupils.Model.open(begins or folder, context, config.adapter)
            head = new_head(model.spec.dim) if begins is None else load_head(begins)
            rate = config.policy.value_lr
            critic = beside.learner(course, units, longest, ANSWER, head, lr=rate)
        engine = None
        kind: Any = Reinforcement
        if config.apart:
            devices = config.how.writers or [str(device)]
            here = sum(each == "cpu" for each in devices)  # what writes elsewhere takes no core
            cores = rl_parts.cores(config, course.threads, here)
            threads = config.how.threads or max(1, course.threads // (here + 1))
            course.threads = config.how.threads or max(1, course.threads - threads * here)
            writer = partial(rl_parts.beside, config, folder, context.work, devices, threads)
            kind = partial(
                Delayed,
                staleness=config.staleness,
                beside=writer,
                early=config.how.early,
                theirs=rl_parts.held_beside(config, model.decoder, sampling.batch, devices, longest),
                cores=cores,
                whole=None if config.adapter is None else merged,
            )
        elif config.staleness:
            kind = partial(Delayed, staleness=config.staleness, early=config.how.early)
        if config.generator != "own" and not config.apart:
            ends = {*tokenizer.stop_ids, *stops(folder)}
            engine = rl_parts.served(config, folder, context.work, model.decoder, sampling, ends, tools)
        if course.world is not None:
            from shunter.post.laid_out_rl import LaidOutReinforcement

            kind = LaidOutReinforcement
        grader = rl_parts.grader(config, context, course)
        held.callback(grader.close)
        lessons: Reinforcement = kind(
            course,
            policy,
            before,
            critic,
            prompts,
            tokenizer,
            grader,
            config.policy,
            sampling,
            group=config.group,
            per_step=config.prompts_per_step,
            max_gap=config.gap_allowed(precision),
            seed=config.seed,
            stop_ids=stops(folder),
            tools=tools,
            engine=engine,
            block=config.how.block,
            cache=config.how.cache,
            masks=config.unfinished == "mask",
        )
        lessons.phases.began = began
        try:
            course.run(lessons)
        finally:
            lessons.close()
        rewards = lessons.rewards
        if (whole := model.whole()) is not None:
            taught.save(whole, folder, context.out, config.adapter)
            lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in lessons.samples]
            (context.out / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
            (context.out / "rewards.json").write_text(json.dumps(rewards) + "\n", encoding="utf-8")
        share = max(1, len(rewards) // 10)
        return {
            "reward_first": sum(rewards[:share]) / share,
            "reward_last": sum(rewards[-share:]) / share,
            "largest_gap": lessons.most_gap,
            "prompts": prompts.num_rows,
            "too_long": prompts.too_long,
            "not_graded": sum(lessons.grader.failures.values()),
            "skipped": len(course.skipped),
            "parameters": model.spec.num_parameters,
            **rl_account.account(context, model.spec, lessons),
        }


def stops(folder: Path) -> list[int]:
    """Tokens that end an answer by the model's own configuration."""
    found: list[int] = models.special(folder)["eos_token_id"]
    return found


JOB = RlJob()
