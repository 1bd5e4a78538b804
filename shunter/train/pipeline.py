"""A training step over a pipeline: each rank holds some stages of the decoder and their optimizer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.data.tokens import Batch
from shunter.models.decoder import Decoder
from shunter.models.segments import SegmentPlan
from shunter.parallel.clock import gather_timeline, offset
from shunter.parallel.collect import collect
from shunter.parallel.cut import cut_layers, decoder_costs
from shunter.parallel.decoder import DecoderStage, Rows, decoder_stages, drop_others
from shunter.parallel.executor import Executor
from shunter.parallel.lost import answering
from shunter.parallel.saved import SavedBytes
from shunter.parallel.stage import Compute, Stage
from shunter.parallel.tree import Tree
from shunter.parallel.vocabulary import VocabularyPart, cut_vocabulary
from shunter.record.timeline import Timeline
from shunter.schedule.action import WEIGHT
from shunter.schedule.assemble import assemble
from shunter.schedule.builders.single import forward_waves
from shunter.schedule.costs import Costs
from shunter.schedule.lower import lower
from shunter.schedule.meetings import algorithm_of
from shunter.schedule.order import Order
from shunter.schedule.program import Program
from shunter.schedule.simulate import simulate
from shunter.schedule.vocabulary import parallel_vocabulary
from shunter.train.config import Parallel
from shunter.train.device import autocast
from shunter.train.world import World


def cut_decoder(decoder: Decoder, parallel: Parallel, order: Order, row_length: int) -> list[int]:
    """Bounds of the stages. Raises ShunterError for bounds that are not layers in order."""
    layers = decoder.spec.num_layers
    if parallel.cut is None:
        costs, first, last = decoder_costs(decoder.spec, row_length)
        if order.collectives:
            first = last = 0.0  # every rank has its part
        return cut_layers(costs, order.placement, first, last)
    cut = [0, *parallel.cut, layers]
    if any(a >= b for a, b in pairwise(cut)):
        raise ShunterError(
            f"cut {parallel.cut} does not give every stage a layer of {layers}",
            mend=f"Give rising numbers from 1 to {layers - 1}.",
        )
    return cut


class PipelinePasses:
    """Forward and backward passes of this rank's stages; see `passes.Passes`.

    The decoder keeps this rank's parameters; the others move to the meta device. A weight that stands at
    both ends (a tied embedding) is held by both, with the sum of both gradients, and so stays the same.
    """

    def __init__(self, decoder: Decoder, parallel: Parallel, world: World, row_length: int) -> None:
        self.decoder, self.world, self.device = decoder, world, world.device
        device = world.device
        self.precision = "fp32"
        costs, _, head = decoder_costs(decoder.spec, row_length)
        self.order = parallel.order(head * parallel.pp / sum(costs))
        self.cut = cut_decoder(decoder, parallel, self.order, row_length)
        mine = [stage for stage, rank in enumerate(self.order.placement) if rank == world.rank]
        algorithm = algorithm_of(self.order)
        split_ends = algorithm is not None
        modules = decoder_stages(decoder, self.cut, mine, layers_only=split_ends)
        self.pieces = cut_vocabulary(decoder, world.rank, world.size) if split_ends else {}
        self.owned = {name for stage in modules.values() for name in stage.owned()} | self.pieces.keys()
        drop_others(decoder, self.owned)
        for name, parameter in decoder.named_parameters():
            if name in self.owned:
                parameter.data = parameter.data.to(device)
        self.rows: list[Rows] = []
        halves = any(action.op == WEIGHT for actions in self.order.actions for action in actions)
        self.stages = {
            number: Stage(self._computes(module), module, defer=halves) for number, module in modules.items()
        }
        first, last = self.order.placement[0], self.order.placement[-1]
        self.vocabulary: VocabularyPart | None = None
        if algorithm is not None:
            self.vocabulary = VocabularyPart(
                decoder.embed.weight,
                decoder.embed.weight if decoder.head is None else decoder.head.weight,
                self.pieces["embed.weight"].begin,
                world.groups,
                world.rank,
                first,
                last,
                lambda microbatch: self.rows[microbatch],
                algorithm=algorithm,
            )
        self.executor = self._executor(parallel.lowered(self.order))
        self._forwards: dict[int, Executor] = {}
        self.tied = decoder.spec.tied and first != last and not split_ends
        self.tied = self.tied and decoder.embed.weight.requires_grad  # a frozen one stays the same by itself
        self.shares_tied = self.tied and world.rank in (first, last)
        self.counts_tied = world.rank == first

    def gradients(
        self, batches: Sequence[Batch], coefficients: Sequence[Tensor], z_loss: float
    ) -> tuple[Tensor, Tensor]:
        if len(batches) != self.order.microbatches:
            raise ValueError(f"{len(batches)} micro-batches, the program is of {self.order.microbatches}")
        self._load(batches, coefficients, z_loss)
        losses = self._run(self.executor, train=True)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for microbatch, loss in losses.items():
            plain = self.rows[microbatch].plain
            assert plain is not None
            sums += torch.stack([loss.double(), plain.double()])
        self.rows = []
        self.world.sum(sums)
        self._add_tied()
        return sums[0], sums[1]

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch], coefficients: Sequence[Tensor]) -> Tensor:
        executor = self._forwards.get(len(batches))
        if executor is None:
            order = forward_waves(self.order.placement, len(batches))
            if self.vocabulary is not None:
                order = parallel_vocabulary(order, self.vocabulary.algorithm)
            executor = self._forwards[len(batches)] = self._executor(lower(assemble(order)))
        self._load(batches, coefficients, 0.0)
        losses = self._run(executor, train=False)
        self.rows = []
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for loss in losses.values():
            total += loss
        return self.world.sum(total)

    def _executor(self, program: Program) -> Executor:
        handlers = self.vocabulary.handlers() if self.vocabulary is not None else None
        world = self.world
        return Executor(program, world.rank, self.stages, world.groups, self.device, handlers=handlers)

    def _run(self, executor: Executor, *, train: bool) -> dict[int, Tensor]:
        """Walk the program; the losses, where the last stage is."""
        part = self.vocabulary
        if part is None:
            return executor.run(self._key)
        part.prepare(train, torch.bfloat16 if self.precision == "bf16" else None)
        try:
            return executor.run(self._key) | part.losses
        finally:
            part.drop()

    def clip(self, limit: float) -> Tensor:
        mine = {name: p for name, p in self.decoder.named_parameters() if name in self.owned}
        counted = [
            p.grad
            for name, p in mine.items()
            if p.grad is not None and not (self.tied and name == "embed.weight" and not self.counts_tied)
        ]
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for gradient in counted:
            square += torch.linalg.vector_norm(gradient).double().square()
        norm = self.world.sum(square).sqrt().float()
        torch.nn.utils.clip_grads_with_norm_(mine.values(), limit, norm)
        return norm

    def record(self) -> None:
        """Note the next step's actions and the most held for backwards; `timeline` hands them out."""
        self._shift = offset(self.world.group, self.world.groups.ranks, self.world.rank, self.device)
        saved = SavedBytes(parameter for parameter in self.decoder.parameters() if not parameter.is_meta)
        for stage in self.stages.values():
            stage.saved = saved
        self._saved = saved
        self.executor.clock.start()

    def timeline(self) -> Timeline | None:
        """All ranks' actions since `record`, on rank 0; None on the others.

        `saved_bytes` has then, on all ranks, the most bytes that each held for backwards.
        """
        spans = self.executor.clock.stop()
        world = self.world
        for stage in self.stages.values():
            stage.saved = None
        peaks = torch.zeros(world.size, dtype=torch.float64, device=self.device)
        peaks[world.rank] = self._saved.peak
        self.saved_bytes = [int(peak) for peak in world.sum(peaks).tolist()]
        return gather_timeline(spans, self._shift, world.group, world.groups.ranks, world.rank, self.device)

    def gather(self, whole: Decoder) -> bool:
        """Copy all ranks' weights into rank 0's `whole`; every rank calls it. True on rank 0."""
        mine = {name: p for name, p in self.decoder.named_parameters() if name in self.owned}
        world = self.world
        with answering(world.rank, "bring the weights together"):
            found = collect(mine, world.groups, world.rank, world.device, self.pieces)
        if found is None:
            return False
        whole.load_state_dict(found, strict=True)
        return True

    def _computes(self, module: DecoderStage) -> Compute:
        def compute(inputs: Tree, microbatch: int) -> Tree:
            with autocast(self.device, self.precision):
                made: Tree = module(inputs, self.rows[microbatch])
            return made

        return compute

    def _load(self, batches: Sequence[Batch], coefficients: Sequence[Tensor], z_loss: float) -> None:
        def put(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        self.rows = [
            Rows(
                put(batch.tokens),
                put(batch.positions),
                put(batch.targets),
                factors.to(self.device, non_blocking=True),
                SegmentPlan.build(put(batch.segments)),
                z_loss,
            )
            for batch, factors in zip(batches, coefficients, strict=True)
        ]

    def _key(self, microbatch: int) -> object:
        return tuple(self.rows[microbatch].tokens.shape)

    def _add_tied(self) -> None:
        """Both ends of a tied weight get the sum of their gradients: the same bits on both."""
        if not self.shares_tied:
            return
        weight = self.decoder.embed.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        ends = sorted({self.order.placement[0], self.order.placement[-1]})
        ranks, groups = self.world.groups.ranks, self.world.groups
        low, high = ends
        # There and back: the lower rank adds up, so that both have its sum.
        with answering(self.world.rank, "add up a tied weight's gradient"):
            if self.world.rank == high:
                dist.send(weight.grad, ranks[low], group=groups.down)
                dist.recv(weight.grad, ranks[low], group=groups.up)
            else:
                other = torch.empty_like(weight.grad)
                dist.recv(other, ranks[high], group=groups.down)
                weight.grad += other
                dist.send(weight.grad, ranks[high], group=groups.up)


def expected(order: Order, measured: Timeline) -> Timeline:
    """The order's simulated timeline at the median costs of a measured one, without messages' time."""
    samples: dict[tuple[str, int], list[float]] = {}
    for span in measured:
        samples.setdefault((span.args["op"], span.args["stage"]), []).append(span.seconds)
    costs = Costs({key: statistics.median(seconds) for key, seconds in samples.items()})
    return simulate(assemble(order), costs).timeline()


def split(ids: np.ndarray, parts: int) -> list[np.ndarray]:
    """A step's rows in `parts` micro-batches whose sizes differ by at most one, none empty."""
    assert len(ids) >= parts
    return [np.asarray(part) for part in np.array_split(ids, parts)]
