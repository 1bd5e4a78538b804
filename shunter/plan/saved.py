"""A plan's file as it must be: every value by type and range, and each beside the others.

A plan decides how a run is laid out and what it is held to, so one that was cut short, written by hand or
damaged is refused with its line, before any work. Imports without torch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from shunter.cluster.description import Description
from shunter.config.base import Config
from shunter.models.spec import DecoderSpec
from shunter.plan.calibration import Fitted, wrong
from shunter.plan.memory import PARTS
from shunter.plan.practice import practice
from shunter.plan.profile import Profile


class SavedLayers(Config):
    """Layers with degrees of their own, over the ranks of their stage."""

    of: list[int] = Field(min_length=1, description="Numbers of the layers.")
    dp: int = Field(ge=1, description="Copies.")
    fsdp: int = Field(ge=1, description="Copies that are cut.")
    cp: int = Field(ge=1, description="Parts of a row.")
    tp: int = Field(ge=1, description="Parts of a matrix.")
    ep: int = Field(ge=1, description="Parts of the set of experts.")
    etp: int = Field(ge=1, description="Parts of an expert.")


class SavedEnds(Config):
    """Embedding and head with degrees of their own, likewise."""

    dp: int = Field(ge=1, description="Copies.")
    fsdp: int = Field(ge=1, description="Copies that are cut.")
    cp: int = Field(ge=1, description="Parts of a row.")
    tp: int = Field(ge=1, description="Parts of the vocabulary.")


class SavedLayout(Config):
    """Degrees, stages, and what of the layers is not kept."""

    pp: int = Field(ge=1, description="Stages' ranks.")
    dp: int = Field(ge=1, description="Copies.")
    fsdp: int = Field(ge=1, description="Copies that are cut.")
    cp: int = Field(ge=1, description="Parts of a row.")
    tp: int = Field(ge=1, description="Parts of a matrix.")
    ep: int = Field(ge=1, description="Parts of the set of experts.")
    etp: int = Field(ge=1, description="Parts of an expert.")
    chunks: int = Field(ge=1, description="Stages on each rank.")
    cut: list[int] = Field(description="First layer of each stage but the first.")
    recompute: Literal["none", "selective", "layer", "stage"] = Field(description="What is computed again.")
    zero: Literal[1] | None = Field(None, description="1: copies share the optimizer's state.")
    recomputed_layers: list[int] | None = Field(None, description="Of each stage: layers computed again.")
    again: list[int] | None = Field(None, description="Numbers of the layers that are computed again.")
    offload: list[int] | None = Field(None, description="Numbers of the layers that are put aside.")
    layers: list[SavedLayers] | None = Field(None, description="Layers with degrees of their own.")
    ends: SavedEnds | None = Field(None, description="Embedding's and head's own degrees.")

    @property
    def ranks(self) -> int:
        return self.pp * self.dp * self.fsdp * self.cp * self.tp


class SavedPlaces(Config):
    """Which device does what, where that matters."""

    devices: list[str] = Field([], description="Names of the devices, in the order of ranks.")
    how: str = Field("", description="How the order was found.")
    naive_step_seconds: float | None = Field(None, gt=0, description="A step in the order of the file.")
    nics: list[list[str]] = Field([], description="NICs of each stage's devices.")


class SavedPlan(Config):
    """The file's values; `shunter.plan.plan.Plan` says what they are."""

    model: DecoderSpec = Field(description="The model that was planned for.")
    cluster: str = Field(description="Its name.")
    cluster_fingerprint: str = Field(description="Of its description and the devices that are used.")
    devices: int = Field(ge=1, description="Devices that are used.")
    batch: int = Field(ge=1, description="Rows of a step.")
    sequence: int = Field(ge=1, description="Tokens of a row.")
    practice: str = Field(description="Whose program computes.")
    layout: SavedLayout = Field(description="Degrees, stages, recomputation.")
    schedule: Literal["1f1b", "interleaved-1f1b", "zb1p", "zbv", "gpipe"] = Field(description="Its name.")
    microbatch: int = Field(ge=1, description="Rows of a micro-batch on a data rank.")
    microbatches: int = Field(ge=1, description="Of a step on each data rank.")
    step_seconds: float = Field(gt=0, description="Predicted, of a step.")
    compute_seconds: float = Field(ge=0, description="In which the busiest rank computes.")
    communication_seconds: float = Field(ge=0, description="In which it waits for messages.")
    bubble_seconds: float = Field(ge=0, description="In which it waits for other ranks.")
    tokens_per_second_per_device: float = Field(gt=0, description="Predicted.")
    flops_per_device: float = Field(gt=0, description="A second, by the model's formula.")
    mfu: float = Field(gt=0, description="Of it, share of the peak.")
    memory_bytes_by_stage: list[float] = Field(min_length=1, description="Of a rank at each place.")
    memory_parts: dict[str, float] = Field(description="Of the fullest rank.")
    coefficients: dict[str, Fitted] = Field({}, description="What the prediction rests on.")
    coefficients_by_kind: dict[str, dict[str, Fitted]] = Field(
        {}, description="Those that are others on some kinds of devices."
    )
    price_per_hour: float | None = Field(None, ge=0, description="Of the devices.")
    machine: Description | None = Field(None, description="The cluster as it was described.")
    ranks: list[int] = Field([], description="Of each rank, the number of its device.")
    placed: SavedPlaces = Field(default_factory=SavedPlaces, description="Names of the devices.")
    profile: dict[str, Any] | None = Field(None, description="What the model was measured to take.")

    @model_validator(mode="after")
    def _sound(self) -> SavedPlan:
        layout, layers = self.layout, self.model.num_layers
        practice(self.practice)  # raises ShunterError, with the nearest name
        if self.profile is not None:
            Profile.of(self.profile)
        for known in (self.coefficients, *self.coefficients_by_kind.values()):
            for name, each in known.items():
                if said := wrong(name, each.value):
                    raise ValueError(said)
        if wanting := sorted(self.memory_parts.keys() ^ set(PARTS)):
            raise ValueError(f"memory_parts are {', '.join(PARTS)}, and {wanting[0]} is missing or too many")
        if min([*self.memory_bytes_by_stage, *self.memory_parts.values()]) < 0:
            raise ValueError("no memory is less than nothing")
        if layout.ranks != self.devices:
            raise ValueError(f"the layout is of {layout.ranks} ranks, the plan of {self.devices} devices")
        stages = layout.pp * (2 if self.schedule == "zbv" else layout.chunks)
        if len(layout.cut) != stages - 1:
            raise ValueError(
                f"layout.cut has {len(layout.cut)} bounds, but {stages} stages have {stages - 1}"
            )
        if any(a >= b for a, b in pairwise([0, *layout.cut, layers])):
            raise ValueError(f"layout.cut {layout.cut} does not give every stage a layer of {layers}")
        for name in ("again", "offload"):
            chosen = getattr(layout, name) or []
            if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(layers)):
                raise ValueError(f"layout.{name} does not name layers of {layers}, each once")
        numbers = [number for own in layout.layers or [] for number in own.of]
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(layers)):
            raise ValueError(f"layout.layers does not name layers of {layers}, each once")
        for own in layout.layers or []:
            if own.dp * own.fsdp * own.cp * own.tp * layout.pp != self.devices:
                raise ValueError(f"layers {own.of} are laid out over other ranks than their stage has")
        if (ends := layout.ends) is not None and (
            ends.dp * ends.fsdp * ends.cp * ends.tp * layout.pp != self.devices
        ):
            raise ValueError("ends are laid out over other ranks than their stage has")
        if both := set(layout.again or []) & set(layout.offload or []):
            raise ValueError(f"layer {min(both)} is both computed again and put aside")
        rows = -(-self.batch // (layout.dp * layout.fsdp))
        if not (self.microbatches - 1) * self.microbatch < rows <= self.microbatches * self.microbatch:
            raise ValueError(
                f"{self.microbatches} micro-batches of {self.microbatch} rows do not make a rank's {rows}"
            )
        if len(self.memory_bytes_by_stage) != layout.pp:
            raise ValueError(
                f"memory_bytes_by_stage has {len(self.memory_bytes_by_stage)} ranks of {layout.pp}"
            )
        if self.ranks and sorted(self.ranks) != list(range(self.devices)):
            raise ValueError(f"ranks must name each of the {self.devices} devices once")
        if self.placed.devices and len(self.placed.devices) != self.devices:
            raise ValueError(f"placed.devices names {len(self.placed.devices)} devices of {self.devices}")
        return self
