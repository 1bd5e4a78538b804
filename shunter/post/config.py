"""Configuration of learning from preferences and rewards. Imports without torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from shunter.config.base import Config
from shunter.config.nearest import nearest
from shunter.generate.config import ServerConfig
from shunter.post.verifiers import CONSTRAINTS
from shunter.recipe.job import How
from shunter.train.config import Parallel, TrainConfig

# What metrics of a step are called besides (`rl/length`, ...): a reward of such a name would hide one.
TAKEN = frozenset(
    {
        "reward", "length", "finished", "flat_groups", "staleness", "idle", "gap", "largest_gap", "kl",
        "entropy", "ratio", "max_ratio", "clipped", "tool_calls", "tool_failures", "value_error",
        "policy_loss", "value_loss", "kl_loss", "entropy_loss", "not_graded", "moved_mb", "answers",
        "gathered", "writing_seconds", "grading_seconds", "preparation_seconds", "learning_seconds",
    }
)  # fmt: skip

RewardKind = Literal[
    "number", "boxed", "exact", "contains", "f1", "format", "constraints", "code", "checker", "model"
]


class Known(Config):
    """An answer whose score is known."""

    answer: str = Field(description="The answer.")
    score: float = Field(description="What a checker must print for it.")
    target: str = Field("", description="What the data says of it.")
    prompt: str = Field("", description="What was asked.")


class RewardConfig(Config):
    """One part of an answer's reward: how good it is by some rule, times a weight."""

    kind: RewardKind = Field(
        description="number: the last number is the target's; boxed: TeX in \\boxed{}; exact, contains: the "
        "target's text; f1: words in common with it; format: a pattern; constraints: countable demands; "
        "code: a program passes tests; checker: a program of your own says it; model: a reward model."
    )
    weight: float = Field(1.0, description="Factor of this part in the sum.")
    name: str | None = Field(
        None,
        exclude_if=lambda value: value is None,  # rewards without are what they were before there was any
        pattern=r"^[A-Za-z][\w-]*$",
        description="How metrics call it; default: its kind. Two rewards of one kind need one.",
    )
    target: str | list[str] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Field of the conversations that answers are compared with (see their `columns`); "
        "several are put together as one JSON object. Default: the assistant's last message.",
    )
    pattern: str | None = Field(None, description="format: regular expression that the whole answer matches.")
    constraints: dict[str, str] = Field(
        {},
        description="constraints: name and value of each demand; without any, the target holds them as JSON.",
    )
    language: str = Field(
        "python", description="code, checker: the programs' language, or a file that tells it."
    )
    seconds: float = Field(2.0, gt=0, le=600, description="code, checker: CPU seconds for a program.")
    file: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="checker: the program. It reads JSON (prompt, answer, target, finished) from standard "
        "input and prints a number.",
    )
    known: list[Known] = Field(
        [],
        exclude_if=lambda value: not value,
        description="checker: answers with the score that they must get, graded in every batch.",
    )
    partial: float = Field(
        0.0, ge=0, lt=1, description="code: reward of a program that runs and prints something wrong."
    )
    failed: float = Field(
        0.0,
        exclude_if=lambda value: value == 0,  # rewards without are what they were before there was a choice
        description="checker, model: score, before the weight, that counts for an answer that it cannot "
        "grade. Of other kinds that is the worst that they give: 0, or 1 with a weight below 0.",
    )

    @model_validator(mode="after")
    def _complete(self) -> RewardConfig:
        if (self.kind == "format") != (self.pattern is not None):
            raise ValueError("pattern belongs to a reward of the kind format, which needs one")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is no regular expression ({error})") from error
        if self.constraints and self.kind != "constraints":
            raise ValueError("constraints belong to a reward of the kind constraints")
        for name in self.constraints:
            if name not in CONSTRAINTS:
                near = nearest(name, CONSTRAINTS)
                mend = f"Did you mean {near}?" if near else f"There are {', '.join(CONSTRAINTS)}."
                raise ValueError(f"there is no constraint {name!r}. {mend}")
        if self.kind not in ("code", "checker") and (self.language != "python" or self.seconds != 2.0):
            raise ValueError("language and seconds belong to rewards of the kinds code and checker")
        if self.kind != "code" and self.partial:
            raise ValueError("partial belongs to a reward of the kind code")
        if self.kind not in ("checker", "model") and self.failed:
            raise ValueError("failed belongs to rewards of the kinds checker and model")
        if self.name in TAKEN:
            raise ValueError(f"the name {self.name!r} is that of another number of a step; choose another")
        if self.target is not None and not self.compares:
            raise ValueError(
                "target belongs to rewards that compare an answer with something, which this one does not"
            )
        if self.target == [] or (isinstance(self.target, list) and len(set(self.target)) < len(self.target)):
            raise ValueError("target names a field twice, or none")
        if (self.kind == "checker") != (self.file is not None):
            raise ValueError("file belongs to a reward of the kind checker, which needs one")
        if self.known and self.kind != "checker":
            raise ValueError("known answers belong to a reward of the kind checker")
        return self

    @property
    def label(self) -> str:
        """What metrics call it."""
        return self.name or self.kind

    @property
    def compares(self) -> bool:
        """Whether it reads what the data says of an answer."""
        return self.kind not in ("format", "model") and not self.constraints

    @property
    def columns(self) -> list[str]:
        """Fields of conversations that hold its target; none: the assistant's last message is it."""
        return [self.target] if isinstance(self.target, str) else list(self.target or ())


class PostTrain(Config):
    """One optimisation after pre-training: the same configuration gives the same weights."""

    steps: int = Field(ge=1, description="Optimizer steps, or with rollouts: steps of writing and learning.")
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the weight matrices of the layers, AdamW for all others."
    )
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2, description="AdamW's decay rates.")
    eps: float = Field(1e-8, gt=0, description="AdamW's denominator offset.")
    weight_decay: float = Field(0.0, ge=0, description="Decay of tensors with at least two dims.")
    schedule: Literal["cosine", "wsd", "constant"] = Field("constant", description="Shape of the rate.")
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    final: float = Field(0.0, ge=0, le=1, description="Last learning rate as a share of the peak.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32", description="bf16 computes matrix products in bfloat16, which parts the trainer's "
        "log-probabilities from the generator's."
    )  # fmt: skip
    max_skipped: int = Field(10, ge=0, description="Steps with a non-finite loss or gradient to endure.")

    @model_validator(mode="after")
    def _consistent(self) -> PostTrain:
        self.plain()
        return self

    def plain(self) -> TrainConfig:
        """What optimizers and schedules read."""
        shared = self.model_dump(include=set(PostTrain.model_fields) & set(TrainConfig.model_fields))
        return TrainConfig(**shared)


class PostHow(How):
    """Choices that do not change what is learnt (equivalent within rounding; tests show it)."""

    micro_tokens: int = Field(4096, ge=1, description="Tokens in one forward and backward pass, about.")
    at_once: int = Field(256, ge=1, description="Answers that are written side by side.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, description="CPU threads of a process; 0: one a core, shared out.")
    deterministic: bool = Field(False, description="Refuse kernels whose result varies between runs.")
    checkpoint_every: int = Field(50, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints to keep.")
    log_every: int = Field(5, ge=1, description="Steps between lines of progress and metrics.")
    track: list[Literal["tensorboard", "wandb", "mlflow"]] | None = Field(
        None, description="Trackers fed beside the event log; default: tensorboard where it is installed."
    )


class LaidOutHow(PostHow):
    """Choices that do not change what is learnt."""

    parallel: Parallel | None = Field(
        None, description="Lay the model out over several processes; none: one process."
    )


class PoolConfig(Config):
    """Processes that some roles share."""

    roles: list[Literal["actor", "critic", "reference", "reward", "writer"]] = Field(
        min_length=1, description="Roles on it, which take turns; writer: where `staleness` is not 0."
    )
    processes: int = Field(
        1, ge=1, description="Processes of the pool; each has a copy of its roles' models."
    )


class PlacementConfig(Config):
    """Roles of reinforcement learning on processes of this machine, or on a Ray cluster."""

    arrangement: Literal["colocate", "split", "standalone", "auto"] = Field(
        "colocate",
        description="colocate: all roles on all processes; split: actor and reference, and the others beside "
        "them; standalone: each role on its own; auto: what the cost model finds fastest.",
    )
    processes: int = Field(2, ge=1, description="Processes in all.")
    pools: list[PoolConfig] | None = Field(None, description="Instead of an arrangement: who is with whom.")
    parts: int = Field(
        1,
        ge=1,
        description="Parts of the actor's matrices while it learns, each on its own process; they come "
        "together to write. Not with deterministic.",
    )
    backend: Literal["processes", "ray", "inline"] = Field(
        "processes",
        description="processes: of this machine; ray: actors on a Ray cluster; inline: everything in one "
        "process, each pool of one.",
    )
    address: str = Field(
        "",
        description="Of the Ray cluster: HOST:PORT of its head, or auto for the one that this machine is a "
        "node of; empty: one of this machine alone, made for the job.",
    )
    timeout: float = Field(600.0, gt=0, description="Seconds after which a silent process is given up.")

    @model_validator(mode="after")
    def _an_address_is_of_ray(self) -> PlacementConfig:
        if self.address and self.backend != "ray":
            raise ValueError("address is that of a Ray cluster; set backend: ray, or leave it out")
        return self


class RlHow(LaidOutHow):
    """Choices that do not change what is learnt."""

    placement: PlacementConfig | None = Field(
        None, description="Roles on processes; none: one process for everything."
    )
    writer: Literal["auto", "here", "process"] = Field(
        "auto",
        description="Without a placement. here: writing and learning take turns in one process; process: "
        "another process writes meanwhile; auto: another process where `staleness` is not 0.",
    )
    writers: list[Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]] | None = Field(
        None,
        min_length=1,
        description="Devices of the processes that write, one each; default: one process, on `device`.",
    )
    early: bool = Field(
        True,
        description="Where answers come meanwhile: take the gradient of those to a prompt as soon as they "
        "are graded, and move the weights when the step is complete; with one update a step, of grpo, "
        "dr_grpo, rloo and gspo, and not with deterministic. false: begin when the step is complete.",
    )
    swap: Literal["tokens", "steps"] = Field(
        "tokens",
        description="When a process that writes takes newer weights. tokens: between two tokens of answers, "
        "which go on with them; steps: when all answers are written that it was asked for.",
    )
    server: ServerConfig | None = Field(
        None, description="Where the server is that writes, if `generator` names one."
    )
    block: int = Field(
        8,
        ge=1,
        description="Tokens of a block of the cache with which answers are written: smaller ones leave less "
        "of it unused, larger ones take fewer look-ups.",
    )
    cache: int = Field(
        0,
        ge=0,
        description="Tokens that this cache holds; where it is full, answers wait, or are put aside and read "
        "anew. 0: room for `at_once` answers of the greatest length.",
    )
    divergence: bool = Field(
        False,
        description="Show how far the policy is from the first model where `policy.kl` is 0, which takes a "
        "second copy of the weights. With a `kl`, or adapters, it is shown anyway.",
    )


Algorithm = Literal["ppo", "grpo", "dapo", "dr_grpo", "rloo", "reinforce++", "gspo"]


# Where the divergence from the reference is a part of the reward, not of the loss.
IN_REWARD = ("ppo", "reinforce++", "rloo")


class PolicyConfig(Config):
    """How rewards become a gradient. An algorithm stands for its paper's advantage, ratio, clip and average.

    What else a paper does is asked for by itself. Of DAPO, `dapo` is the clip and the mean over tokens:
    batches of groups that differ are `least_groups`, and answers that are cut off and not learnt from are the
    job's `unfinished: mask`. Its penalty on length is not here."""

    algorithm: Algorithm = Field("grpo", description="Advantages, ratio, clip and average together.")
    clip_low: float | None = Field(None, gt=0, description="How far below 1 a ratio counts.")
    clip_high: float | None = Field(None, gt=0, description="How far above 1 a ratio counts.")
    kl: float = Field(
        0.0, ge=0, description="Weight of the divergence from the model that training began with."
    )
    estimator: Literal["k2", "k3"] = Field("k3", description="Of the divergence, where it is in the loss.")
    entropy: float = Field(0.0, ge=0, description="Weight of the entropy, which is rewarded.")
    updates: int = Field(1, ge=1, description="Parts into which a step's answers are cut, one update each.")
    epochs: int = Field(1, ge=1, description="Times that a step's answers are learnt from.")
    least_groups: int = Field(
        1,
        ge=1,
        exclude_if=lambda value: value == 1,  # jobs without are what they were before there was a choice
        description="Groups whose answers are not all worth the same that an update needs; fewer wait for "
        "those of later steps, and the policy stays as it is until then.",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="ppo: discount a token.")
    lam: float = Field(0.95, ge=0, le=1, description="ppo: lambda of the advantages' estimate.")
    value_clip: float = Field(0.2, gt=0, description="ppo: how far a value may move to count.")
    value_weight: float = Field(0.5, gt=0, description="ppo: weight of the value model's loss.")
    value_lr: float | None = Field(None, gt=0, description="ppo: the value model's rate; default: the same.")

    @field_validator("estimator", mode="before")
    @classmethod
    def _in_a_loss(cls, given: object) -> object:
        if given == "k1":
            raise ValueError(
                "k1 has no gradient in the mean: it is what ppo, reinforce++ and rloo take off the reward. "
                "In a loss, use k2 or k3"
            )
        return given

    @property
    def compares(self) -> bool:
        """Whether an answer is worth what it is beside others to the same prompt."""
        return self.algorithm not in ("ppo", "reinforce++")

    @model_validator(mode="after")
    def _is_read(self) -> PolicyConfig:
        for name in ("gamma", "lam", "value_clip", "value_weight", "value_lr"):
            if self.algorithm != "ppo" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} belongs to ppo; {self.algorithm} does not read it: leave it out")
        if self.algorithm in IN_REWARD and self.estimator != "k3":
            raise ValueError(
                f"{self.algorithm} has the divergence in the reward, as k1, and not in the loss: leave "
                "estimator out"
            )
        return self

    @model_validator(mode="after")
    def _gathers_groups(self) -> PolicyConfig:
        if self.least_groups > 1 and not self.compares:
            raise ValueError(
                f"{self.algorithm} learns from groups of equal rewards too: leave least_groups out"
            )
        return self
