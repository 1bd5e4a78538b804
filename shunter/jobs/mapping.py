"""The job `map-roles`: which roles of reinforcement learning share which devices of a cluster, simulated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.recipe.job import How, JobConfig, JobContext

ROLES = ("actor", "critic", "reference", "reward")
FIXED = {
    "colocate": (ROLES,),
    "split": (("actor", "reference"), ("critic", "reward")),
    "standalone": (("actor",), ("critic",), ("reference",), ("reward",)),
}


class MappingConfig(JobConfig):
    """Looks for the fastest placement of PPO's roles, by the planner's cost model."""

    cluster: str = Field("superpod-a100-80", description="Description of devices and links: a name or file.")
    devices: list[int] = Field([16, 32, 64, 128], min_length=1, description="Numbers of devices to try.")
    unit: int = Field(8, ge=1, description="Devices are given out in multiples of it.")
    model: str = Field("llama-2-7b", description="Actor and reference, by the name of a published model.")
    critic: str | None = Field(None, description="Critic and reward model; none: as the actor.")
    prompt: int = Field(1024, ge=1, description="Tokens of a prompt.")
    answer: int = Field(1024, ge=1, description="Tokens of an answer.")
    batch: int = Field(1024, ge=1, description="Prompts of an iteration.")
    updates: int = Field(8, ge=1, description="Updates in which an iteration's answers are learnt.")
    practice: str = Field("megatron-2021", description="How the program computes; see `shunter plan`.")
    how: How = Field(default_factory=How, description="Choices that must not change the result.")


class MappingJob:
    """Writes `mapping.json`: by number of devices, the chosen placement beside three fixed ones."""

    kind: ClassVar[str] = "map-roles"
    produces: ClassVar[str] = "mapping"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = MappingConfig

    def check(self, config: MappingConfig, base: Path) -> Sequence[str]:
        from shunter.cluster import files
        from shunter.plan.practice import practice
        from shunter.plan.presets import preset

        files.find(config.cluster)
        practice(config.practice)
        preset(config.model)
        preset(config.critic or config.model)
        for devices in config.devices:
            if devices % config.unit:
                raise ShunterError(f"{devices} devices are no multiple of {config.unit}", where="devices")
        return []

    def run(self, context: JobContext[MappingConfig]) -> dict[str, Any]:
        config = context.config
        found = {str(devices): compare(config, devices) for devices in config.devices}
        (context.out / "mapping.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return {f"seconds_{devices}": told["chosen"]["seconds"] for devices, told in found.items()}


def compare(config: MappingConfig, devices: int) -> dict[str, Any]:
    """The chosen placement, and the fixed ones that have the memory."""
    from shunter.cluster import files
    from shunter.plan.fabric import Fabric
    from shunter.plan.mapping import Mapped, Mapper
    from shunter.plan.practice import practice
    from shunter.plan.presets import preset
    from shunter.plan.role_costs import Costs, Load, Work

    small = preset(config.critic or config.model)
    works = {
        "actor": Work(preset(config.model), writes=True, prepares=False, learns=True),
        "critic": Work(small, learns=True),
        "reference": Work(preset(config.model)),
        "reward": Work(small),
    }
    fabric = Fabric.of(files.find(config.cluster))
    load = Load(config.batch, config.prompt, config.answer, config.updates)
    mapper = Mapper(ROLES, Costs(works, load, fabric, practice(config.practice)), unit=config.unit)

    def told(it: Mapped) -> dict[str, Any]:
        return {
            "seconds": it.seconds,
            "stages": dict(it.stages),
            "sets": [list(members) for members in it.sets],
            "devices": list(it.devices),
            "explained": it.explain(),
        }

    found: dict[str, Any] = {"chosen": told(mapper.best(devices))}
    for name, sets in FIXED.items():
        try:
            found[name] = told(mapper.best(devices, sets))
        except ShunterError as error:
            found[name] = {"refused": error.what}
    winners: dict[str, Literal[1]] = {
        name: 1 for name, sets in FIXED.items() if sorted(map(list, sets)) == sorted(found["chosen"]["sets"])
    }
    found["winner"] = next(iter(winners), "another")
    return found


JOB = MappingJob()
