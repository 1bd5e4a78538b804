"""A kind of device: memory, and how fast it multiplies and moves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shunter.config.base import Config

# Matrix products by their smallest dimension, and attention by itself. Small products keep a device less
# busy; where the limits lie is a convention of this file, so that measurements of two machines compare.
CLASSES = ("tiny", "small", "medium", "large", "attention")

ShapeClass = Literal["tiny", "small", "medium", "large", "attention"]
Dtype = Literal["fp8", "bf16", "fp16", "tf32", "fp32", "fp64"]


def shape_class(*dimensions: int) -> ShapeClass:
    """The class of a product of these dimensions (m, n, k): by the smallest, `tiny` below 256, `small` below
    1024, `medium` below 4096, `large` from there on."""
    least = min(dimensions)
    if least >= 4096:
        return "large"
    if least >= 1024:
        return "medium"
    return "small" if least >= 256 else "tiny"


class Rates(Config):
    """FLOP/s of one device in one number format."""

    peak: float = Field(gt=0, description="FLOP/s that the maker states, without sparsity.")
    achieved: dict[ShapeClass, float] = Field(
        {}, description="FLOP/s reached, by class of shape: tiny, small, medium, large, attention."
    )
    spread: dict[ShapeClass, float] = Field(
        {}, description="Of measured ones: half the range between quartiles over the median."
    )

    @model_validator(mode="after")
    def _sound(self) -> Rates:
        for name, rate in self.achieved.items():
            if rate <= 0:
                raise ValueError(f"the rate of {name} must be greater than 0 (got {rate:g})")
            if rate > 1.05 * self.peak:  # clocks above the stated ones have been seen, by some per cent
                raise ValueError(f"{name} reaches {rate:.3g} FLOP/s, more than the peak of {self.peak:.3g}")
        return self


class DeviceKind(Config):
    """One kind of device."""

    type: Literal["gpu", "cpu"] = Field("gpu", description="Whether it is a GPU or a CPU.")
    memory: float = Field(gt=0, description="Bytes that a process can have of it.")
    memory_bandwidth: float = Field(gt=0, description="Bytes a second between it and its own memory.")
    copy_bandwidth: float | None = Field(
        None, gt=0, description="Bytes a second of a copy to or from the host's memory."
    )
    host_memory: float | None = Field(
        None,
        gt=0,
        description="Bytes of the host's memory that layers put aside may take, for each device; none: as "
        "many as they need.",
    )
    flops: dict[Dtype, Rates] = Field(min_length=1, description="FLOP/s by number format.")
    overlap_slowdown: float = Field(
        1.0, ge=1, description="How many times longer it computes while it also communicates."
    )
    source: str = Field("", description="Where the numbers come from.")

    def rate(self, dtype: str, shape: str = "large") -> float:
        """FLOP/s reached in a class of shapes: as described, or of the nearest larger class that is, or the
        peak where none is. `known(dtype, shape)` tells which. Raises KeyError for a format without rates."""
        rates = self.flops[dtype]  # type: ignore[index]
        for name in self._instead(shape):
            if name in rates.achieved:
                return rates.achieved[name]
        return rates.peak

    def known(self, dtype: str, shape: str = "large") -> bool:
        """Whether `rate` is what was reached in this class, not what stands in for it."""
        rates = self.flops.get(dtype)  # type: ignore[call-overload]
        return rates is not None and shape in rates.achieved

    def peak(self, dtype: str) -> float:
        """FLOP/s that the maker states. Raises KeyError for a format without rates."""
        return self.flops[dtype].peak  # type: ignore[index]

    @staticmethod
    def _instead(shape: str) -> tuple[str, ...]:
        if shape == "attention":
            return ("attention", "large")
        return CLASSES[CLASSES.index(shape) : CLASSES.index("attention")]
