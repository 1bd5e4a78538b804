"""A model's profile on one machine: what its parts and messages take there (arXiv 2211.13878, section 5.1).

The cost model counts operations and divides by rates; where the machine is at hand, this takes the place of
both. Made by `shunter.plan.profiler`, kept as YAML. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shunter.config import write, yaml
from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec

FORMAT, VERSION = "shunter-profile", 1
FAR = 2.0  # times the largest micro-batch measured beyond which a line through the last two is not trusted
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """Seconds by size, at least one point; sizes rise."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    def at(self, size: Floats) -> Floats:
        """Lines between points, the last one carried on; below the first no less than its share of it."""
        x, y = np.asarray(self.sizes), np.asarray(self.seconds)
        size = np.asarray(size, float)
        if len(x) == 1:
            return y[0] * size / x[0]
        found = np.interp(size, x, y)
        end = max((y[-1] - y[-2]) / (x[-1] - x[-2]), 0.0)
        begin = max((y[1] - y[0]) / (x[1] - x[0]), 0.0)
        found = np.where(size > x[-1], y[-1] + (size - x[-1]) * end, found)
        return np.where(size < x[0], np.maximum(y[0] - (x[0] - size) * begin, y[0] * size / x[0]), found)


@dataclass(frozen=True)
class Pass:
    """Of one part of the model by rows of a micro-batch."""

    forward: Curve
    backward: Curve


@dataclass(frozen=True)
class Profile:
    """What was measured with all ranks at work.

    spec, row, products: the model, tokens of a row, number format of products. ranks: processes that worked
    at once. layer, embedding, head: by tensor degree, without messages; an embedding's and a head's weights
    are cut as the layers' are. messages: kind -> ranks -> seconds by bytes of the whole tensor, between
    products: `gather`, `scatter` (a sum of which each rank gets a part), `sum`, and `hop` from one stage to
    the next (ranks 2). update: by parameters of a rank, seconds in which gradients are clipped, weights
    changed and gradients given up.
    """

    spec: dict[str, Any]
    row: int
    products: str
    ranks: int
    layer: Mapping[int, Pass]
    embedding: Mapping[int, Pass]
    head: Mapping[int, Pass]
    messages: Mapping[str, Mapping[int, Curve]]
    update: Curve
    machine: str = ""
    date: str = ""
    spreads: Mapping[str, float] = field(default_factory=dict)

    def must_be_for(self, spec: DecoderSpec, row: int, products: str, where: str = "") -> None:
        """Raise ShunterError where it is of another model, row or number format."""
        theirs = spec.model_dump(mode="json")
        # Layers of one model are alike: how many there are, and whether its ends are one, it is not about.
        free = ("num_layers", "max_positions", "tied")
        differ = [
            f"{name} {self.spec.get(name)}, not {value}"
            for name, value in theirs.items()
            if name not in free and self.spec.get(name) != value
        ]
        differ += [f"rows of {self.row} tokens, not {row}"] * (row != self.row)
        differ += [f"products in {self.products}, not {products}"] * (products != self.products)
        if differ:
            raise ShunterError(
                f"the profile is of another model: {', '.join(differ[:3])}",
                where=where,
                mend="Measure this one with `shunter probe --model`.",
            )

    def part(self, name: str, tp: Ints, rows: Floats) -> tuple[Floats, Floats]:
        """(forward, backward) of `layer`, `embedding` or `head` for each pair of the arrays. Raises
        ShunterError for a tensor degree that was not measured, and far beyond the rows that were."""
        measured: Mapping[int, Pass] = getattr(self, name)
        tp, rows = np.broadcast_arrays(tp, np.asarray(rows, float))
        forward, backward = np.zeros(tp.shape), np.zeros(tp.shape)
        for degree in np.unique(tp).tolist():
            if degree not in measured:
                known = ", ".join(map(str, sorted(measured)))
                raise ShunterError(
                    f"the profile has tensor degrees {known}, not {degree}",
                    mend="Fix another, or measure with more --ranks.",
                )
            which = tp == degree
            if np.any(rows[which] > self.most(degree)):
                raise ShunterError(
                    f"measured with up to {max(measured[degree].forward.sizes):g} rows, "
                    f"asked for {np.max(rows[which]):g}",
                    mend="Measure larger micro-batches (--global-batch).",
                )
            forward[which] = measured[degree].forward.at(rows[which])
            backward[which] = measured[degree].backward.at(rows[which])
        return forward, backward

    def most(self, tp: int) -> float:
        """Rows of the largest micro-batch that is foreseen; none with a degree that was not measured."""
        return FAR * max(self.layer[tp].forward.sizes) if tp in self.layer else 0.0

    def message(self, kind: str, count: Ints, size: Floats, otherwise: Floats) -> Floats:
        """Seconds of each message among `count` ranks; `otherwise` where that was not measured."""
        found = np.array(np.broadcast_to(otherwise, np.broadcast(count, size).shape), dtype=float)
        count, size = np.broadcast_arrays(count, size)
        for ranks, curve in self.messages.get(kind, {}).items():
            which = count == ranks
            found[which] = curve.at(size[which])
        return found

    def data(self) -> dict[str, Any]:
        """As plain values, each number with four digits."""
        return {"format": FORMAT, "version": VERSION, **_plain(asdict(self))}

    @classmethod
    def of(cls, data: Any, where: str = "") -> Profile:
        """From plain values. Raises ShunterError for what is no profile."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ShunterError(
                "this is no profile", where=where, mend="Write one with `shunter probe --model`."
            )
        if data.get("version") != VERSION:
            raise ShunterError(
                f"a profile of version {data.get('version')}; this shunter reads {VERSION}",
                where=where,
                mend="Measure again with `shunter probe --model`.",
            )
        try:
            parts = {
                name: {
                    int(tp): Pass(_curve(it["forward"]), _curve(it["backward"]))
                    for tp, it in data[name].items()
                }
                for name in ("layer", "embedding", "head")
            }
            messages = {
                kind: {int(ranks): _curve(it) for ranks, it in curves.items()}
                for kind, curves in data["messages"].items()
            }
            return cls(
                spec=dict(data["spec"]), row=int(data["row"]), products=str(data["products"]),
                ranks=int(data["ranks"]), **parts, messages=messages, update=_curve(data["update"]),
                machine=str(data.get("machine", "")), date=str(data.get("date", "")),
                spreads={str(name): float(value) for name, value in data.get("spreads", {}).items()},
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShunterError(
                f"the profile is damaged ({type(error).__name__}: {error})",
                where=where,
                mend="Measure again with `shunter probe --model`.",
            ) from None

    def save(self, path: Path) -> None:
        """Write it. Raises ShunterError where that cannot be."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write.dumps(self.data(), lambda _: None), encoding="utf-8")
        except OSError as error:
            raise ShunterError(f"cannot be written ({error.strerror})", where=str(path)) from None

    @classmethod
    def load(cls, path: Path) -> Profile:
        """A saved one. Raises ShunterError."""
        return cls.of(yaml.load(path).data, str(path))


def _curve(data: Mapping[str, Any]) -> Curve:
    sizes, seconds = (tuple(float(each) for each in data[name]) for name in ("sizes", "seconds"))
    if not sizes or len(sizes) != len(seconds) or list(sizes) != sorted(set(sizes)) or min(seconds) < 0:
        raise ValueError("a curve needs rising sizes, each with its seconds")
    return Curve(sizes, seconds)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
