"""The roles of an algorithm put where a placement says, with all that they need to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shunter.generate.config import SamplingConfig
from shunter.layout.generation import Hybrid
from shunter.post.config import PolicyConfig, PostTrain, RewardConfig
from shunter.post.judged import settings
from shunter.post.policy import PolicySettings
from shunter.post.roles.flow import Flow, Group
from shunter.post.roles.placement import Placement
from shunter.post.roles.scripts import Cast


@dataclass(frozen=True)
class Play:
    """What is learnt from what. costs: rewards of the cost, for scripts that have one. room: tokens of a
    prompt at most. prefix: stands before what the person says last. objective: instead of the algorithm's, as
    ReMax has it. value_model: a reward model that the critic begins as; None: as the actor, with a head of
    zeros. staleness: steps that a writer may be behind; 0: the actor writes. journal: answers outlive a
    crash, in the flow's folder, which is then this play's."""

    model: Path
    prompts: Path
    rewards: Sequence[RewardConfig]
    policy: PolicyConfig
    train: PostTrain
    sampling: SamplingConfig
    group: int
    per_step: int
    room: int
    seed: int = 0
    task: str | None = None
    prefix: str = ""
    costs: Sequence[RewardConfig] = ()
    reward_model: Path | None = None
    value_model: Path | None = None
    unfinished: float | None = None
    stops: Sequence[int] = ()
    max_gap: float = 0.02
    micro_tokens: int = 4096
    keep: int = 2
    base: Path = field(default_factory=Path)
    objective: PolicySettings | None = None
    journal: bool = False
    staleness: int = 0
    reference: bool = True  # whether the first model is asked; it must be where `policy.kl` is not 0

    @property
    def roles(self) -> list[str]:
        """Those that are needed, by kind."""
        found = ["prompts", "actor", *(["reference"] if self.reference else []), "reward", "judge"]
        if self.policy.algorithm == "ppo":
            found.append("critic")
        if self.staleness:
            found.append("writer")
        if self.costs:
            found += ["cost", "cost_critic"]
        return found


# ReMax: the gradient of the sum over an answer's tokens, in the mean over answers (arXiv 2310.10505).
REMAX = PolicySettings(average="constant", length=1)


def stage(flow: Flow, placement: Placement, play: Play, name: str = "", parts: int = 1) -> Cast:
    """Put every role of the play on its pool. name: before the names of its roles, where a flow has more.
    parts: of the actor's matrices while it learns."""
    groups: dict[str, Group] = {}
    for role in play.roles:
        kind = {"cost": "reward", "cost_critic": "critic"}.get(role, role)
        pool = placement.where[role]
        layout = Hybrid(t=parts, d=placement.pools[pool] // parts) if role == "actor" else None
        groups[role] = flow.cast(name + role, kind, pool, layout, **_settings(role, play))
    return Cast.of(groups)


def _settings(role: str, play: Play) -> Mapping[str, Any]:
    temperature = play.sampling.temperature
    model = {"model": play.model, "micro_tokens": play.micro_tokens}
    train = {"train": play.train.model_dump(mode="json"), "seed": play.seed, "keep": play.keep}
    if role == "prompts":
        return {
            "path": play.prompts, "tokenizer": play.model, "per_step": play.per_step, "room": play.room,
            "task": play.task, "prefix": play.prefix, "seed": play.seed,
            "rewards": [each.model_dump(mode="json") for each in (*play.rewards, *play.costs)],
        }  # fmt: skip
    if role == "judge":
        return {"policy": play.policy.model_dump(mode="json")}
    if role == "reference":
        return {**model, "precision": play.train.precision, "temperature": temperature}
    if role in ("reward", "cost"):
        rules = play.rewards if role == "reward" else play.costs
        return {
            "rewards": [each.model_dump(mode="json") for each in rules], "tokenizer": play.model,
            "reward_model": play.reward_model, "unfinished": play.unfinished, "seed": play.seed,
            "base": play.base,
        }  # fmt: skip
    if role in ("critic", "cost_critic"):
        policy = play.policy
        if role == "critic" and play.value_model is not None:
            model = {**model, "model": play.value_model, "head": play.value_model}
        return {
            **model, **train, "lr": policy.value_lr, "clip": policy.value_clip, "weight": policy.value_weight,
        }  # fmt: skip
    # Of updates: what is a step behind is as many of them old as a step has.
    age = play.staleness * play.policy.updates * play.policy.epochs
    writes = {
        "sampling": play.sampling.model_dump(mode="json"),
        "group": play.group,
        "stops": list(play.stops),
    }
    if role == "writer":
        return {"model": play.model, "seed": play.seed, **writes, "journal": play.journal, "age": age}
    objective = play.objective or settings(play.policy, play.sampling.max_new_tokens)
    return {
        **model, **train, "policy": asdict(objective), **writes, "max_gap": play.max_gap,
        "journal": play.journal and not play.staleness, "staleness": age, "behind": play.staleness,
    }  # fmt: skip
