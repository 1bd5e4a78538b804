"""Configuration of adapters. Imports without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shunter.config.base import Config

Target = Literal["q", "k", "v", "out", "gate", "up", "down"]
Besides = Literal["norms", "embed", "head"]

ALL: list[Target] = ["q", "k", "v", "out", "gate", "up", "down"]


class AdapterConfig(Config):
    """Low-rank adapters (LoRA, arXiv 2106.09685) are trained; the model's own weights stay as they are.

    With `quantise` the weights of the layers are held in fewer bits meanwhile (QLoRA, arXiv 2305.14314).
    """

    rank: int = Field(8, ge=1, description="Width of each adapter.")
    alpha: float = Field(16.0, gt=0, description="An adapter's product is scaled by alpha / rank.")
    targets: list[Target] = Field(
        ALL, description="Projections that get an adapter: q, k, v, out, gate, up, down."
    )
    also: list[Besides] = Field([], description="What is trained in full besides: norms, embed, head.")
    quantise: Literal["none", "bf16", "int8", "nf4"] = Field(
        "none", description="How the frozen weights of the layers are held; they are merged as they are held."
    )
    rank_stabilised: bool = Field(
        False, description="Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> AdapterConfig:
        for name in ("targets", "also"):
            given: list[str] = getattr(self, name)
            if twice := next((each for each in given if given.count(each) > 1), None):
                raise ValueError(f"{name} names {twice!r} twice")
        if not self.targets and self.quantise != "none":
            raise ValueError(
                f"quantise: {self.quantise} freezes the layers' weights, so targets must name some of them "
                "that get an adapter"
            )
        if not self.targets and not self.also:
            raise ValueError("targets and also are both empty, so nothing would be trained")
        return self

    @property
    def scale(self) -> float:
        """Factor of an adapter's product."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)
