"""The job `rl` with its roles on processes: `how.placement`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.jobs import rl_parts, taught
from shunter.launch import ray_cluster
from shunter.recipe.job import JobContext

if TYPE_CHECKING:
    from shunter.jobs.rl import RlConfig
    from shunter.models.spec import DecoderSpec
    from shunter.post.roles.placement import Placement


def check(config: RlConfig) -> None:
    """Raise ShunterError for what cannot be placed."""
    assert config.how.placement is not None
    if config.how.placement.backend == "ray":
        ray_cluster.ready("Roles on a Ray cluster")
    if config.how.device not in ("auto", "cpu"):
        raise ShunterError(
            "roles on processes compute on the CPU so far",
            where="how.placement",
            mend="Leave how.placement out, or set how.device to cpu.",
        )
    if config.tools is not None:
        raise ShunterError(
            "an actor on processes of its own answers in one turn, without tools",
            where="how.placement",
            mend="Leave one of tools and how.placement out.",
        )
    if config.staleness:
        _check_ahead(config)
    if config.adapter is not None:
        raise ShunterError(
            "roles on processes train whole models so far, no adapters",
            where="how.placement",
            mend="Leave one of adapter and how.placement out.",
        )
    placement = _placement(config, None)
    parts, processes = config.how.placement.parts, placement.pools[placement.where["actor"]]
    if parts > 1 and (processes % parts or config.how.deterministic):
        raise ShunterError(
            f"the actor's {processes} processes are no copies of {parts} parts each"
            if processes % parts
            else "parts of matrices are added up in another order, which deterministic does not allow",
            where="how.placement.parts",
            mend="Let parts divide the processes of the actor, and leave out deterministic.",
        )


def _check_ahead(config: RlConfig) -> None:
    how = config.how.placement
    assert how is not None
    if how.parts > 1:
        raise ShunterError(
            "an actor in parts does not hand its weights on while it learns so far",
            where="how.placement.parts",
            mend="Leave one of staleness and parts out.",
        )
    if how.pools is None and how.backend != "inline" and how.arrangement == "auto":
        raise ShunterError(
            "the cost model knows no writer beside the actor",
            where="how.placement.arrangement",
            mend="Use split or standalone, or name pools.",
        )


def run(context: JobContext[RlConfig]) -> dict[str, Any]:
    """As `rl` without a placement: the same files, the same metrics."""
    from shunter.models.hf import load_model, read_spec

    config = context.config
    folder = context.one("model").path
    taught.opened(folder)
    spec = read_spec(folder)
    room = spec.max_positions - config.max_new_tokens
    if room < 1:
        raise ShunterError(
            f"{config.max_new_tokens} new tokens fill the context of {spec.max_positions}",
            where=context.name,
            mend="Lower max_new_tokens.",
        )
    from shunter.data.tokenizer import Tokenizer
    from shunter.generate.config import SamplingConfig
    from shunter.jobs.rl import stops
    from shunter.post.roles.run import rehearsed
    from shunter.post.roles.stage import Play
    from shunter.post.targets import survey

    play = Play(
        model=folder,
        prompts=context.one("prompts").path / "train.jsonl",
        rewards=config.rewards,
        policy=config.policy,
        train=config.train,
        sampling=SamplingConfig(
            temperature=config.temperature, max_new_tokens=config.max_new_tokens, batch=config.how.at_once
        ),
        group=config.group,
        per_step=config.prompts_per_step,
        room=room,
        seed=config.seed,
        task=config.task,
        prefix=taught.prefix(config.rewards, context.base),
        reward_model=rl_parts.reward_model(context),
        value_model=rl_parts.value_model(context, spec, spec.max_positions),
        unfinished=config.cut_off,
        stops=sorted({*Tokenizer.load(folder).stop_ids, *stops(folder)}),
        max_gap=config.gap_allowed("fp32" if config.train.precision == "fp32" else "bf16"),
        micro_tokens=config.how.micro_tokens,
        keep=max(2, config.how.keep),  # the state names one that a save may be about to push out
        base=context.base,
        journal=True,
        staleness=config.staleness,
        reference=_refers(config),
    )
    if any((context.work / "checkpoints").glob("step-*")):
        raise ShunterError(
            "this training was begun without how.placement, and its checkpoints are of another form",
            where="how.placement",
            mend="Leave it out, or begin anew with --redo.",
        )
    for sentence in survey(play.prompts, config.task, config.rewards):
        context.events.write("problem", problem=sentence)
    placement = _placement(config, spec)
    context.events.write("placement", pools=placement.pools, where=placement.where)
    told = rehearsed(play, placement, config.how, taught.place(context))
    taught.save(load_model(context.work / "written"), folder, context.out)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in told.samples]
    (context.out / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    (context.out / "rewards.json").write_text(json.dumps(told.rewards) + "\n", encoding="utf-8")
    share = max(1, len(told.rewards) // 10)
    return {
        "reward_first": sum(told.rewards[:share]) / share,
        "reward_last": sum(told.rewards[-share:]) / share,
        "largest_gap": told.most_gap,
        "prompts": told.prompts,
        "too_long": told.too_long,
        "not_graded": told.not_graded,
        "skipped": told.skipped,
        "moved_bytes": told.moved,
        "control_bytes": told.control,
        "parameters": spec.num_parameters,
    }


def _placement(config: RlConfig, spec: DecoderSpec | None) -> Placement:
    """spec: of the model; without it `auto` is not looked for yet."""
    from shunter.post.roles.placement import Placement, arranged

    how = config.how.placement
    assert how is not None
    roles = ["prompts", "actor", *(["reference"] if _refers(config) else []), "reward", "judge"]
    roles += ["critic"] if config.policy.algorithm == "ppo" else []
    roles += ["writer"] if config.staleness else []
    if how.pools is not None:
        return Placement.of([pool.roles for pool in how.pools], [p.processes for p in how.pools], roles)
    if how.backend == "inline":
        return Placement({"all": 1}, dict.fromkeys(roles, "all"))
    if how.arrangement != "auto":
        return arranged(how.arrangement, roles, how.processes)
    if spec is None:
        return arranged("colocate", roles, how.processes)
    return mapped(config, spec, roles, how.processes)


def _refers(config: RlConfig) -> bool:
    """Whether a role holds the first model: where it counts, or is to be shown, or has a pool by name."""
    how = config.how.placement
    named = how is not None and any("reference" in pool.roles for pool in how.pools or ())
    return config.policy.kl > 0 or config.how.divergence or named


def mapped(config: RlConfig, spec: DecoderSpec, roles: list[str], processes: int) -> Placement:
    """By simulated cost on this machine's processes. Raises ShunterError where nothing has memory.

    The CPU's rates are those of the description `cpu`; processes are taken to have a core each."""
    from dataclasses import replace

    from shunter.cluster import files
    from shunter.plan.fabric import Fabric
    from shunter.plan.mapping import Mapper
    from shunter.plan.practice import PRACTICES, Coefficients
    from shunter.plan.role_costs import Costs, Load, Work
    from shunter.post.roles.placement import Placement

    works = {
        "actor": Work(spec, writes=True, prepares=False, learns=True),
        "critic": Work(spec, learns=True),
        "reference": Work(spec),
        # Rules take no time beside models; a reward model has its own, about as large.
        "reward": Work(spec, prepares=config.reward_model is not None),
    }
    models = [role for role in works if role in roles]
    fabric = Fabric.of(files.find("cpu"))
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / processes
    known = Coefficients().but("a process on a CPU has neither", fixed=0.0)
    profile = Costs(
        {role: works[role] for role in models},
        Load(
            config.answers,
            max(1, spec.max_positions // 2),
            config.max_new_tokens,
            at_once=config.how.at_once,
            group=config.group,
        ),
        replace(fabric, world=processes),
        PRACTICES["shunter-fp32"],
        known,
        cut=False,
    )
    profile.memory = room
    found = Mapper(models, profile).best(processes)
    return Placement.of(found.sets, found.devices, roles)
