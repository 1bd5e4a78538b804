"""The job `reshard`: a model's weights between learning and writing, on processes, counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.layout.generation import Hybrid, transition
from shunter.models.spec import DecoderSpec
from shunter.recipe.job import How, JobConfig, JobContext

Style = Literal["hybridflow", "vanilla", "sharded"]

LOADS = ("shunter.parallel.resharding",)  # by the process that ranks are forked from


class ReshardHow(How):
    """How to count."""

    timeout: float = Field(120.0, gt=0, description="Seconds after which a rank that is silent is given up.")


class ReshardConfig(JobConfig):
    """Changes the weights of a small decoder from the layout it learns in to the one it writes in."""

    style: Style = Field(
        "hybridflow",
        description="hybridflow: what a rank learns with lies inside what it writes with; vanilla: a copy's "
        "ranks bring the whole model together; sharded: all ranks do.",
    )
    p: int = Field(1, ge=1, description="Stages to learn with.")
    t: int = Field(4, ge=1, description="Parts of each matrix to learn with.")
    d: int = Field(2, ge=1, description="Copies to learn with.")
    pg: int = Field(1, ge=1, description="Stages to write with; divides p.")
    tg: int = Field(2, ge=1, description="Parts to write with; divides t.")
    dim: int = Field(256, ge=8, description="Width.")
    layers: int = Field(4, ge=1, description="Layers.")
    heads: int = Field(8, ge=1, description="Heads of queries.")
    groups: int = Field(8, ge=1, description="Heads of keys and values.")
    inner: int = Field(768, ge=1, description="Feed-forward width.")
    words: int = Field(1024, ge=2, description="Words of the vocabulary.")
    repeats: int = Field(3, ge=1, description="Changes there and back that are timed, after one to get warm.")
    how: ReshardHow = Field(default_factory=ReshardHow, description="How to count.")

    def layout(self) -> Hybrid:
        """Raises ShunterError for degrees that do not divide."""
        return Hybrid(self.p, self.t, self.d, self.pg, self.tg, vanilla=self.style != "hybridflow")

    def spec(self) -> DecoderSpec:
        """Raises ShunterError for heads that do not divide."""
        if self.dim % self.heads or self.heads % self.groups:
            raise ShunterError("heads divide the width, and groups the heads", where="heads")
        return DecoderSpec(
            vocab_size=self.words, max_positions=64, dim=self.dim, num_layers=self.layers,
            num_heads=self.heads, num_kv_heads=self.groups, head_dim=self.dim // self.heads,
            ffn_dim=self.inner,
        )  # fmt: skip


class ReshardJob:
    """Writes `reshard.json`: bytes of each rank, beside what the paper's table says. What it makes is a
    measurement; a new one takes `--redo`."""

    kind: ClassVar[str] = "reshard"
    produces: ClassVar[str] = "resharding"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = ReshardConfig

    def check(self, config: ReshardConfig, base: Path) -> Sequence[str]:
        layout, spec = config.layout(), config.spec()
        for what, size, degree in (
            ("layers", spec.num_layers, layout.p),
            ("heads of keys", spec.num_kv_heads, layout.t),
            ("columns inside", spec.ffn_dim, layout.t),
            ("words", spec.vocab_size, layout.t),
        ):
            if size % degree:
                raise ShunterError(f"{size} {what} are not in {degree} equal parts")
        return []

    def run(self, context: JobContext[ReshardConfig]) -> dict[str, Any]:
        config = context.config
        layout = config.layout()
        request = {"config": config.model_dump(mode="json")}
        found = elastic.launch(
            "shunter.jobs.reshard", request, layout.size, context.work / "ranks", threads=1,
            poll=lambda: None,
        )  # fmt: skip
        table = transition(config.style, layout, found["weights"])
        found |= {"table": table._asdict()}
        (context.out / "reshard.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        return {
            "received_bytes": found["received"],
            "peak_bytes": found["peak"],
            "redundant_bytes": found["redundant"],
            "right": float(found["right"]),
        }


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """One rank. Its answer is that of all: the most of any."""
    import statistics
    import time

    import torch
    import torch.distributed as dist

    from shunter.layout.piece import Piece
    from shunter.models.decoder import Decoder
    from shunter.models.init import init_weights
    from shunter.parallel.counted import counted
    from shunter.parallel.mesh import Peers, ProcessGroups
    from shunter.parallel.resharding import Resharder, cut_part, is_even
    from shunter.parallel.told import told_by_all

    torch.set_num_threads(1)
    config = ReshardConfig.model_validate(request["config"])
    wait = timedelta(seconds=config.how.timeout)
    dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=size, timeout=wait)
    spec = config.spec()
    model = Decoder(spec)
    init_weights(model, config.seed)
    whole = {name: tensor.detach() for name, tensor in model.named_parameters()}
    it = Resharder(spec, config.layout(), rank, ProcessGroups(timeout=wait), config.style)
    it.fill(whole)
    before = {name: tensor.clone() for name, tensor in it.learning.items()}
    with counted() as count:
        writing = it.to_writing()
    full = {name: Piece.full(tensor.shape) for name, tensor in whole.items()}
    right = all(
        torch.equal(tensor, cut_part(whole[name], it.target[name], full[name]))
        for name, tensor in writing.items()
    )
    right &= writing.keys() == it.target.keys()
    bill, even = it.bill, it.even
    it.to_learning()
    right &= all(torch.equal(it.learning[name], tensor) for name, tensor in before.items())
    seconds = []
    for _ in range(config.repeats):
        dist.barrier()
        begin = time.perf_counter()
        it.to_writing()
        it.to_learning()
        seconds.append(time.perf_counter() - begin)
    mine = {
        "right": right,
        "sent": count.total(),
        **vars(bill),
        "even": vars(even),
        "seconds": statistics.median(seconds),
    }
    everyone = Peers(dist.group.WORLD, tuple(range(size)), rank)
    ranks = told_by_all(mine, everyone, torch.device("cpu"))
    weights = sum(tensor.nbytes for name, tensor in whole.items() if is_even(name))
    most = {name: max(each[name] for each in ranks) for name in ("received", "peak", "redundant", "seconds")}
    evens = {name: [each["even"][name] for each in ranks] for name in ("received", "peak", "redundant")}
    return {
        **most,
        "right": all(each["right"] for each in ranks),
        "counted": sum(each["sent"] for each in ranks) == sum(each["received"] for each in ranks),
        # Of what is cut evenly, as the table takes all weights to be: the same on every rank.
        "weights": weights,
        "even": {name: values[0] for name, values in evens.items() if len(set(values)) == 1},
        "whole": sum(tensor.nbytes for tensor in whole.values()),
        "ranks": ranks,
    }


JOB = ReshardJob()
