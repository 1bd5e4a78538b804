"""Which roles share which processes. A script does not know; its results do not depend on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shunter.config.errors import ShunterError

# Cheap: they go where the actor is.
BESIDE_ACTOR = ("prompts", "judge")
ARRANGEMENTS = ("colocate", "standalone", "split")


@dataclass(frozen=True)
class Placement:
    """pools: processes of each. where: role -> pool."""

    pools: Mapping[str, int]
    where: Mapping[str, str]

    @classmethod
    def of(cls, sets: Sequence[Sequence[str]], processes: Sequence[int], roles: Sequence[str]) -> Placement:
        """Sets of roles with processes for each; what is named in none goes to the actor.

        Raises ShunterError for a role in two sets, or one that the script does not have."""
        where: dict[str, str] = {}
        pools: dict[str, int] = {}
        for members, count in zip(sets, processes, strict=True):
            pool = "+".join(members)
            pools[pool] = count
            for role in members:
                if role not in roles:
                    raise ShunterError(
                        f"there is no role {role!r} here", mend=f"There are {', '.join(roles)}."
                    )
                if role in where:
                    raise ShunterError(f"the role {role} is in two pools: pools never overlap")
                where[role] = pool
        if "actor" not in where:
            raise ShunterError("the actor is in no pool")
        missing = [role for role in roles if role not in where]
        if lost := [role for role in missing if role not in BESIDE_ACTOR]:
            raise ShunterError(f"no pool has the roles {', '.join(lost)}")
        return cls(pools, {**where, **{role: where["actor"] for role in missing}})


def arranged(
    arrangement: str, roles: Sequence[str], processes: int, sizes: Mapping[str, int] | None = None
) -> Placement:
    """By a known arrangement: all roles on one pool (`colocate`), each on its own (`standalone`), or the
    actor with the reference and all others beside them (`split`).

    sizes: processes of a pool by one of its roles; else 1, and what is left goes to the actor's. Raises
    ShunterError where there are too few processes."""
    models = [role for role in roles if role not in BESIDE_ACTOR]
    if arrangement == "colocate":
        sets = [models]
    elif arrangement == "standalone":
        sets = [[role] for role in models]
    elif arrangement == "split":
        first = [role for role in models if role in ("actor", "reference")]
        sets = [first, [role for role in models if role not in first]]
    else:
        raise ShunterError(
            f"there is no arrangement {arrangement!r}", mend=f"Use {', '.join(ARRANGEMENTS)} or pools."
        )
    counts = [next((sizes[role] for role in members if sizes and role in sizes), 1) for members in sets]
    left = processes - sum(counts)
    if left < 0:
        raise ShunterError(
            f"{arrangement} needs {sum(counts)} processes, there are {processes}",
            mend=f"Give it {sum(counts)}, or another arrangement.",
        )
    actor = next(number for number, members in enumerate(sets) if "actor" in members)
    counts[actor] += left
    return Placement.of(sets, counts, roles)
