"""A plan as data: what was asked, the layout, what it is predicted to take, and on what numbers that rests.

Saved as YAML or JSON, read again, compared, and refused for another model or cluster. Imports without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shunter.cluster.cluster import Cluster
from shunter.config import write, yaml
from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.config.yaml import Source
from shunter.models.spec import DecoderSpec
from shunter.plan.choices import SCHEDULES, Choices, Question
from shunter.plan.own import alike
from shunter.plan.practice import RECOMPUTE
from shunter.plan.saved import SavedPlan
from shunter.plan.score import Prediction
from shunter.plan.search import Found
from shunter.plan.strategies import AGAIN, ASIDE

VERSION = 1
FORMAT = "shunter-plan"
DEGREES = ("pp", "dp", "fsdp", "cp", "tp", "ep", "etp")
END_DEGREES = ("dp", "fsdp", "cp", "tp")  # of embedding and head


@dataclass(frozen=True)
class Plan:
    """layout: degrees, chunks, cut (first layer of each stage but the first), zero (1 where copies share the
    optimizer's state), recompute (kind, layers of each stage, and where single ones can be chosen their
    numbers: `again`, and `offload` of those put aside), layers (those with degrees of their own, as a recipe
    has them), ends (embedding's and head's own, likewise). microbatch: rows; microbatches: of a step on each
    data rank.

    Predicted, in seconds of a step: step, of which the busiest rank computes, waits for messages, and for
    other ranks. memory_bytes_by_stage: of a rank at each place of the pipeline. coefficients: name -> value
    and source; by kind: of devices that have others. machine: the cluster's description, and profile, if it
    rests on one, so that a run can plan anew.

    ranks, where it matters which device does what: of each place of the grid, the number of its device among
    those that are used, and so of its process. placed: their names, how the order was found, seconds of a
    step with devices in the order of the file, and NICs of each stage's devices.
    """

    model: dict[str, Any]
    cluster: str
    cluster_fingerprint: str
    devices: int
    batch: int
    sequence: int
    practice: str
    layout: dict[str, Any]
    schedule: str
    microbatch: int
    microbatches: int
    step_seconds: float
    compute_seconds: float
    communication_seconds: float
    bubble_seconds: float
    tokens_per_second_per_device: float
    flops_per_device: float
    mfu: float
    memory_bytes_by_stage: list[float]
    memory_parts: dict[str, float]
    coefficients: dict[str, Any] = field(default_factory=dict)
    coefficients_by_kind: dict[str, dict[str, Any]] = field(default_factory=dict)
    price_per_hour: float | None = None
    machine: dict[str, Any] | None = None
    ranks: list[int] = field(default_factory=list)
    placed: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] | None = None

    @classmethod
    def of(cls, question: Question, cluster: Cluster, prediction: Prediction) -> Plan:
        """Of one scored layout."""
        spec, world = question.spec, question.fabric.world
        choice = prediction.choice
        layout: dict[str, Any] = {name: int(getattr(choice, name)[0]) for name in DEGREES}
        layout["chunks"] = int(choice.chunks[0])
        layout["cut"] = list(prediction.bounds[1:-1])
        layout["recompute"] = RECOMPUTE[choice.recompute[0]]
        ends = [] if prediction.ends is None else [prediction.ends]
        if any(_shares(question, each) for each in (choice, *prediction.own.values(), *ends)):
            layout["zero"] = 1
        if choice.recompute[0]:
            layout["recomputed_layers"] = list(prediction.recomputed)
        if layout["recompute"] == "layer":
            layout["again"], layout["offload"] = prediction.which(AGAIN), prediction.which(ASIDE)
        if prediction.own:
            layout["layers"] = [
                {"of": numbers, **{name: int(getattr(its, name)[0]) for name in DEGREES[1:]}}
                for numbers, its in alike(prediction.own)
            ]
        if prediction.ends is not None:
            layout["ends"] = {name: int(getattr(prediction.ends, name)[0]) for name in END_DEGREES}
        rate = question.flops / prediction.seconds / world
        device = question.fabric.device
        format = "bf16" if "bf16" in device.flops else next(iter(device.flops))
        totals = [sum(parts.values()) for parts in prediction.bytes]
        fullest = prediction.bytes[totals.index(max(totals))]
        return cls(
            model=spec.model_dump(mode="json"),
            cluster=cluster.name,
            cluster_fingerprint=fingerprint(cluster),
            devices=world,
            batch=question.batch,
            sequence=question.row,
            practice=question.practice.name,
            layout=layout,
            schedule=SCHEDULES[choice.schedule[0]],
            microbatch=int(choice.rows[0]),
            microbatches=prediction.microbatches,
            step_seconds=prediction.seconds,
            compute_seconds=prediction.compute,
            communication_seconds=prediction.communication,
            bubble_seconds=prediction.bubble,
            tokens_per_second_per_device=question.tokens / prediction.seconds / world,
            flops_per_device=rate,
            mfu=rate / question.fabric.peak(format),
            memory_bytes_by_stage=totals,
            memory_parts=fullest,
            coefficients={name: asdict(value) for name, value in question.coefficients.known.items()},
            coefficients_by_kind={
                kind: {name: asdict(value) for name, value in own.items()}
                for kind, own in question.coefficients.kinds.items()
            },
            price_per_hour=question.fabric.price_per_hour,
            machine=cluster.description.model_dump(mode="json", exclude_defaults=True),
            ranks=list(prediction.placed.order) if prediction.placed else [],
            placed=_placed(question, prediction),
            profile=None if question.profile is None else question.profile.data(),
        )

    def row(self, lost_because: str = "") -> dict[str, Any]:
        """What `shunter plan --json` prints of it."""
        names = (
            "layout", "schedule", "microbatch", "step_seconds", "compute_seconds", "communication_seconds",
            "bubble_seconds", "tokens_per_second_per_device", "flops_per_device", "mfu",
            "memory_bytes_by_stage",
        )  # fmt: skip
        found = {**{name: getattr(self, name) for name in names}, "lost_because": lost_because}
        return {**found, "ranks": self.ranks, "placed": self.placed} if self.ranks else found

    def parallel(self) -> dict[str, Any]:
        """As a recipe's `how.parallel` has it, without what is at its default.

        Raises ShunterError for recomputation that this program cannot do.
        """
        kind = self.layout["recompute"]
        if kind not in ("none", "stage") and not (kind == "layer" and self.practice.startswith("shunter")):
            raise ShunterError(
                f"the plan recomputes by {kind}, which recipes cannot",
                mend="Plan with --practice shunter.",
            )
        found = {name: self.layout[name] for name in DEGREES if self.layout[name] > 1}
        if self.layout.get("layers"):
            found["layers"] = [
                {"of": each["of"], **{name: each[name] for name in DEGREES[1:] if each[name] > 1}}
                for each in self.layout["layers"]
            ]
        if its := self.layout.get("ends"):
            found["ends"] = {name: its[name] for name in END_DEGREES if its[name] > 1}
        found["microbatches"] = self.microbatches
        if self.layout.get("zero"):
            found["zero"] = 1
        if self.layout["pp"] > 1:
            found |= {"schedule": self.schedule, "cut": self.layout["cut"]}
            if self.schedule == "interleaved-1f1b":
                found["chunks"] = self.layout["chunks"]
        if kind == "stage":
            found["recompute"] = True
        for key, name in (("again", "recompute"), ("offload", "offload")):
            if self.layout.get(key) and kind == "layer":
                found[name] = self.layout[key]
        if self.ranks and self.ranks != sorted(self.ranks):
            found["ranks"] = self.ranks
        return found

    def must_be_for(self, spec: DecoderSpec | None = None, cluster: Cluster | None = None) -> None:
        """Raise ShunterError where it was made for another model or cluster."""
        if spec is not None and (theirs := spec.model_dump(mode="json")) != self.model:
            differ = [name for name in self.model if self.model[name] != theirs.get(name)]
            raise ShunterError(
                "the plan is for another model: "
                + ", ".join(f"{name} {self.model[name]}, not {theirs.get(name)}" for name in differ[:3]),
                mend="Plan again for this model.",
            )
        if cluster is not None and fingerprint(cluster) != self.cluster_fingerprint:
            raise ShunterError(
                f"the plan is for the cluster {self.cluster} of {self.devices} devices, not for "
                f"{cluster.name} of {cluster.world} as it is described now",
                mend="Plan again for this cluster.",
            )

    def part_of(self, cluster: Cluster) -> Cluster:
        """The devices that it uses, in the order of the cluster's file: its `ranks` are their numbers."""
        names = self.placed.get("devices")
        if (len(names) if names else self.devices) == cluster.world:
            return cluster
        if names is None:
            return cluster.subcluster(range(self.devices))
        return cluster.subcluster([device.rank for device in cluster.devices if device.name in set(names)])

    def data(self) -> dict[str, Any]:
        """As JSON values."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write it: JSON where the name ends so, else YAML. Raises ShunterError where that cannot be."""
        data = self.data()
        text = (
            json.dumps(data, indent=1) + "\n" if path.suffix == ".json" else write.dumps(data, lambda _: None)
        )
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ShunterError(f"cannot be written ({error.strerror})", where=str(path)) from None

    @classmethod
    def load(cls, path: Path) -> Plan:
        """A saved one. Raises ShunterError for a file that is none, or of another version."""
        source = yaml.load(path)
        data = source.data
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ShunterError("this is no plan", where=str(path), mend="Write one with `shunter plan -o`.")
        if data.get("version") != VERSION:
            raise ShunterError(
                f"a plan of version {data.get('version')}; this shunter reads {VERSION}",
                where=str(path),
                mend="Plan again.",
            )
        return cls.of_data(data, str(path), source)

    @classmethod
    def of_data(cls, data: Mapping[str, Any], where: str, source: Source | None = None) -> Plan:
        """From what `data` gives, each value looked at. Raises ShunterError where it is not sound."""
        given = {key: value for key, value in data.items() if key not in ("format", "version")}
        try:
            parse(SavedPlan, given, source)
        except ShunterError as error:
            place = error.where if source is not None else ": ".join(filter(None, (where, error.where)))
            raise ShunterError(
                f"the plan is damaged: {error.what}",
                where=place or where,
                mend=error.mend or "Plan again; a plan is not written by hand.",
            ) from None
        return cls(**given)

    def diff(self, other: Plan) -> dict[str, tuple[Any, Any]]:
        """What is not the same: name -> (here, there)."""
        here, there = dict(_flat(self.data())), dict(_flat(other.data()))
        return {
            name: (here.get(name), there.get(name))
            for name in dict.fromkeys([*here, *there])
            if here.get(name) != there.get(name)
        }


def _shares(question: Question, choice: Choices) -> bool:
    """Whether there are copies that share their optimizer's state."""
    dense, experts = (int(parts[0]) for parts in choice.updates(question.practice))
    more = dense > choice.shards(question.practice)[0]
    spread = question.spec.experts is not None and experts > choice.expert_shards(question.practice)[0]
    return bool(more or spread)


def _placed(question: Question, prediction: Prediction) -> dict[str, Any]:
    placed, terrain = prediction.placed, question.fabric.terrain
    if placed is None or terrain is None:
        return {}
    cluster, each = terrain.cluster, int(prediction.choice.stage_ranks[0])
    return {
        "devices": [cluster.devices[rank].name for rank in placed.order],
        "how": placed.how,
        "naive_step_seconds": placed.naive if math.isfinite(placed.naive) else None,
        "nics": [
            sorted(cluster.nics(placed.order[at : at + each])) for at in range(0, len(placed.order), each)
        ],
    }


def fingerprint(cluster: Cluster) -> str:
    """Of all that a cluster's description says and which of its devices are used."""
    data = cluster.description.model_dump(mode="json")
    names = [device.name for device in cluster.devices]
    return hashlib.sha256(json.dumps([data, names], sort_keys=True).encode()).hexdigest()[:16]


def answer(found: Found, cluster: Cluster) -> dict[str, Any]:
    """What `shunter plan --json` prints."""
    return {
        "plans": [
            {
                **Plan.of(found.question, cluster, each.prediction).row(each.lost_because),
                **({"also": [dict(same.choice.settings(0)) for same in each.also]} if each.also else {}),
            }
            for each in found.plans
        ],
        "search_seconds": found.seconds,
        "considered": found.considered,
        "rejected": found.rejected,
    }


def _flat(data: Mapping[str, Any], at: str = "") -> Sequence[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        found += _flat(value, f"{at}{key}.") if isinstance(value, Mapping) else [(f"{at}{key}", value)]
    return found
