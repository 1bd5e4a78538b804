"""The job `traffic`: what a layout of a block moves between ranks, predicted and counted on processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.layout.blocks import Sizes, block, decoder, two_products
from shunter.layout.choose import Choice, by_indices, cheapest, choose, indices
from shunter.layout.explain import explain
from shunter.layout.graph import Graph
from shunter.layout.problem import Problem as Costs
from shunter.layout.problem import Rule, anything, data_only, tensor_only
from shunter.recipe.job import How, JobConfig, JobContext

RULES: dict[str, Rule] = {"anything": anything, "data": data_only, "tensor": tensor_only}
ITEM = 8  # bytes of an element: the trial is in float64, so that every tensor can be compared
LOADS = ("shunter.parallel.planned",)  # by the process that ranks are forked from


class TrafficHow(How):
    """How to count."""

    timeout: float = Field(120.0, gt=0, description="Seconds after which a rank that is silent is given up.")


class TrafficConfig(JobConfig):
    """Lays the operators of a block out over devices and counts what moves between them in one step."""

    graph: Literal["products", "block", "decoder"] = Field(
        "block", description="Two products, a Transformer block, or a whole small decoder."
    )
    devices: list[int] = Field([4], description="Devices on each axis.", min_length=1, max_length=2)
    cut: list[Literal["anything", "data", "tensor"]] = Field(
        ["anything"], description="For each axis, what may be cut: anything, rows alone, or weights alone."
    )
    rows: int = Field(8, ge=1, description="Rows of the batch.")
    tokens: int = Field(64, ge=1, description="Tokens in a row.")
    width: int = Field(64, ge=1, description="Width of the residual stream.")
    heads: int = Field(8, ge=1, description="Heads of queries.")
    groups: int = Field(8, ge=1, description="Heads of keys and values; divides heads.")
    inner: int = Field(256, ge=1, description="Width inside the feed-forward layer.")
    words: int = Field(256, ge=1, description="Words of the decoder's vocabulary.")
    layers: int = Field(1, ge=1, description="Blocks of the decoder.")
    run: bool = Field(True, description="Execute it on processes and count; else the prediction is all.")
    how: TrafficHow = Field(default_factory=TrafficHow, description="How to count.")

    def build(self) -> Graph:
        """The graph. Raises ShunterError for heads that do not divide."""
        if self.heads % self.groups or self.width % self.heads or self.width // self.heads % 2:
            raise ShunterError(
                f"a width of {self.width} in {self.heads} heads, {self.groups} of keys, is not in even parts",
                mend="Let groups divide heads, and twice the heads divide the width.",
            )
        sizes = Sizes(self.rows, self.tokens, self.width, self.heads, self.groups, self.inner, self.words)
        if self.graph == "products":
            return two_products(self.rows * self.tokens, self.width, self.inner, ITEM)
        return block(sizes, ITEM) if self.graph == "block" else decoder(sizes, self.layers, ITEM)

    def costs(self, graph: Graph) -> Costs:
        """The candidates that `cut` leaves. Raises ShunterError where an operator is left none."""
        if len(self.cut) != len(self.devices):
            raise ShunterError(
                f"cut has {len(self.cut)} entries for {len(self.devices)} axes", mend="Give one an axis."
            )
        if min(self.devices) < 1:
            raise ShunterError(f"devices {self.devices}: an axis has at least 1 device")
        return Costs(graph, self.devices, rules=[RULES[it] for it in self.cut])


class TrafficJob:
    """Writes `traffic.json` (predicted and counted bytes, the conversions) and `traffic.txt` (in
    sentences).
    """

    kind: ClassVar[str] = "traffic"
    produces: ClassVar[str] = "traffic"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = TrafficConfig

    def check(self, config: TrafficConfig, base: Path) -> Sequence[str]:
        config.costs(config.build())
        return []

    def run(self, context: JobContext[TrafficConfig]) -> dict[str, Any]:
        config = context.config
        graph = config.build()
        costs = config.costs(graph)
        free = all(it == "anything" for it in config.cut)
        choice = choose(graph, config.devices) if free else cheapest(costs)
        text = explain(choice)
        (context.out / "traffic.txt").write_text(text + "\n", encoding="utf-8")
        found: dict[str, Any] = {
            "predicted": choice.bytes,
            "cost": choice.cost,
            "exact": choice.exact,
            "layouts": [str(it) for it in choice.signatures],
        }
        if config.run:
            picks = indices(costs, choice)
            request = {"config": config.model_dump(mode="json"), "picks": picks}
            found |= elastic.launch(
                "shunter.jobs.traffic",
                request,
                prod(config.devices),
                context.work / "ranks",
                threads=1,
                poll=lambda: None,
            )
        (context.out / "traffic.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        counted = {"counted_bytes": found["bytes"], "largest_gap": found["gap"]} if config.run else {}
        return {"predicted_bytes": choice.bytes, "proven_cheapest": float(choice.exact), **counted}


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """One rank of the trial."""
    import torch
    import torch.distributed as dist

    from shunter.parallel.boxing import Axes
    from shunter.parallel.mesh import ProcessGroups
    from shunter.parallel.planned import trial

    torch.set_num_threads(1)
    config = TrafficConfig.model_validate(request["config"])
    wait = timedelta(seconds=config.how.timeout)
    dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=size, timeout=wait)
    axes = Axes.over(ProcessGroups(timeout=wait), range(size), config.devices, rank)
    assert axes is not None
    choice: Choice = by_indices(config.costs(config.build()), request["picks"], 0.0, False)
    return trial(choice, axes, config.seed, config.words)


JOB = TrafficJob()
