"""A calibration's file: coefficients that were fitted to runs, of which devices and by which practice.

A coefficient is a share of what a device is described to reach, so it belongs to that description: each kind
is kept with its fingerprint, and refused for another. Kinds of measured machines are all called alike; their
fingerprints differ. Imports without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from shunter.cluster.cluster import Cluster
from shunter.cluster.device import DeviceKind
from shunter.config import write, yaml
from shunter.config.base import Config
from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.plan.practice import Coefficient, Coefficients, kernels

FORMAT = "shunter-calibration"
VERSION = 1
# (least, most) of each coefficient; what is not named must be a positive number. A share of what a device is
# described to reach may be above 1, where the description is modest; a fit goes from 0.05 to 20 times.
BOUNDS: dict[str, tuple[float, float]] = {
    "products": (1e-3, 20.0),
    "attention": (1e-3, 20.0),
    "memory": (1e-3, 20.0),
    "links": (1e-3, 20.0),
    "collectives": (1e-3, 20.0),
    "kernel": (1e-9, 1.0),
    "context": (0.0, 100.0),
    "fixed": (0.0, 1e12),
    "margin": (0.0, 1.0),
}


def wrong(name: str, value: float) -> str | None:
    """Why a coefficient cannot be; None where it can."""
    least, most = BOUNDS.get(name, (1e-12, 1e12))
    if math.isfinite(value) and least <= value <= most:
        return None
    return f"{name} is {value:g}, which no run can have given (from {least:g} to {most:g})"


class Fitted(Config):
    """A coefficient."""

    value: float = Field(description="The number.")
    source: str = Field("", description="Where it is from.")


class KindFitted(Config):
    """Of one kind of device."""

    fingerprint: str = Field(description="Of its description, which the numbers are shares of.")
    coefficients: dict[str, Fitted] = Field(min_length=1, description="By name.")


class Calibration(Config):
    """The file."""

    format: Literal["shunter-calibration"] = Field(description="What the file is.")
    version: Literal[1] = Field(description="Of the format.")
    practice: str = Field(description="Whose program the runs were.")
    cluster: str = Field(description="Where they ran.")
    kinds: dict[str, KindFitted] = Field(min_length=1, description="Kinds of devices by name.")

    @model_validator(mode="after")
    def _sound(self) -> Calibration:
        known = Coefficients().known
        for kind, fitted in self.kinds.items():
            for name, each in fitted.coefficients.items():
                if name not in known:
                    raise ValueError(
                        f"{name!r} of {kind} is no coefficient of the cost model: {', '.join(known)}"
                    )
                if said := wrong(name, each.value):
                    raise ValueError(f"{said}, of {kind}: write calibrations with shunter calibrate")
        return self


def fingerprint(kind: DeviceKind) -> str:
    """Of a device's description."""
    return hashlib.sha256(json.dumps(kind.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:12]


def kinds_of(cluster: Cluster) -> dict[str, str]:
    """Kind -> its fingerprint, of the devices that are used."""
    names = sorted({device.kind for device in cluster.devices})
    return {name: fingerprint(cluster.description.devices[name]) for name in names}


def read(path: Path) -> Calibration:
    """A calibration's file. Raises ShunterError with its line for one that is none, or not sound."""
    source = yaml.load(path)
    if not isinstance(source.data, dict) or source.data.get("format") != FORMAT:
        raise ShunterError(
            "this is no calibration", where=str(path), mend="Write one with shunter calibrate."
        )
    return parse(Calibration, source.data, source)


def calibrated(
    start: Coefficients, cluster: Cluster, practice: str | None, found: Calibration, where: str
) -> Coefficients:
    """With those of a calibration over others. Raises ShunterError where it is of other devices, or of
    another practice."""
    here = kinds_of(cluster)
    if missing := sorted(here.keys() - found.kinds.keys()):
        raise ShunterError(
            f"the calibration is of {', '.join(sorted(found.kinds))}, the cluster has {missing[0]} too"
            if here.keys() & found.kinds.keys()
            else f"the calibration is of {', '.join(sorted(found.kinds))}, the cluster of {', '.join(here)}",
            where=where,
            mend="Calibrate with a run on this cluster.",
        )
    for kind, mark in here.items():
        if found.kinds[kind].fingerprint != mark:
            raise ShunterError(
                f"the calibration is of another {kind} (of {found.cluster}), described by other numbers",
                where=where,
                mend="Calibrate with a run on this cluster.",
            )
    if practice is not None and kernels(practice) != kernels(found.practice):
        raise ShunterError(
            f"the calibration is of runs by {found.practice}, and the plan is for {practice}",
            where=where,
            mend=f"Calibrate with a run of {practice}, or plan with --practice {found.practice}.",
        )
    sets = {
        kind: {name: Coefficient(c.value, c.source) for name, c in fitted.coefficients.items()}
        for kind, fitted in found.kinds.items()
        if kind in here
    }
    if not start.kinds:
        (only,) = sets.values()
        return Coefficients({**start.known, **only})
    kinds = {kind: {**start.kinds.get(kind, {}), **own} for kind, own in sets.items()}
    return replace(start, known=_slowest(cluster, start, kinds), kinds=kinds)


def _slowest(
    cluster: Cluster, start: Coefficients, kinds: Mapping[str, dict[str, Coefficient]]
) -> dict[str, Coefficient]:
    """What stands for all kinds: those of the slowest."""
    return {**start.known, **kinds[slowest_kind(cluster)]}


def slowest_kind(cluster: Cluster) -> str:
    """The kind of device with the least peak."""
    return min(
        cluster.devices, key=lambda device: max(rates.peak for rates in device.spec.flops.values())
    ).kind


def made(found: Coefficients, names: Sequence[str], cluster: Cluster, practice: str) -> Calibration:
    """Some coefficients, of each kind of the cluster's devices, as a file's content."""
    kinds = {
        kind: KindFitted(
            fingerprint=mark,
            coefficients={name: Fitted(**asdict(found.on(kind).known[name])) for name in names},
        )
        for kind, mark in kinds_of(cluster).items()
    }
    return Calibration(
        format="shunter-calibration", version=1, practice=practice, cluster=cluster.name, kinds=kinds
    )


def save(found: Calibration, path: Path) -> None:
    """Write it, whole or not at all. Raises ShunterError where that cannot be."""
    aside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(write.dumps(found.model_dump(mode="json")), encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise ShunterError(f"cannot be written ({error.strerror})", where=str(path)) from None


def kept_at(folder: Path, cluster: Cluster, practice: str) -> Path:
    """Where the calibration of a measured machine and a practice is kept, beside the machine's file."""
    text = json.dumps([kinds_of(cluster), kernels(practice)], sort_keys=True)
    return folder / f"calibration-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
