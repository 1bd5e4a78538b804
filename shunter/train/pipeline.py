"""A training step over a layout: each rank holds a part of the decoder, sees a part of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.data.tokens import Batch
from shunter.layout.grid import DENSE, Grid
from shunter.layout.holding import Holding
from shunter.models.decoder import Decoder
from shunter.models.dropout import Masks
from shunter.models.moe import begin_step
from shunter.models.segments import SegmentPlan
from shunter.models.sharding import holdings
from shunter.parallel.collect import collect
from shunter.parallel.context.attend import ContextSight
from shunter.parallel.context.spread import spread_rows
from shunter.parallel.cut import decoder_costs
from shunter.parallel.decoder import DecoderStage, Rows
from shunter.parallel.executor import Executor
from shunter.parallel.experts import sum_load
from shunter.parallel.lost import answering
from shunter.parallel.part import DecoderPart, Fill, pipeline_cut
from shunter.parallel.sharded import sharded_handlers
from shunter.parallel.stage import Compute, Stage
from shunter.parallel.together import Together
from shunter.parallel.tree import Tree
from shunter.parallel.vocabulary import VocabularyPart, vocabulary_rows
from shunter.schedule.action import WEIGHT
from shunter.schedule.assemble import assemble
from shunter.schedule.builders.single import forward_waves
from shunter.schedule.lower import lower
from shunter.schedule.meetings import algorithm_of
from shunter.schedule.program import Program
from shunter.schedule.vocabulary import parallel_vocabulary
from shunter.train.config import Parallel
from shunter.train.device import autocast
from shunter.train.dropping import Dropping
from shunter.train.host_room import must_have_room
from shunter.train.layout_check import check_layout
from shunter.train.layout_parts import Plan, muon_takes
from shunter.train.shares import share
from shunter.train.stage_cut import cut_decoder, tell_costs
from shunter.train.views import Views
from shunter.train.world import World

ENDS = ("embed.weight", "head.weight")
Head = Callable[[DecoderStage, Tensor, Rows], Tensor]  # see `Rows.head`


class LaidOutPasses:
    """Forward and backward passes of this rank's part of a decoder; see `passes.Passes`.

    The decoder keeps this rank's parameters; the others move to the meta device. A weight that stands at
    both ends of a pipeline (a tied embedding) is held by both, with the sum of both gradients, and so stays
    the same.

    spread: which positions of a row this rank has, where rows are spread over context ranks.
    """

    def __init__(
        self,
        decoder: Decoder,
        parallel: Parallel,
        world: World,
        row_length: int,
        fill: Fill | None = None,
        *,
        rows: int = 1,
        precision: str = "fp32",
        compiled: bool = False,
        optimizer: str = "adamw",
    ) -> None:
        """decoder, fill, compiled: as in `DecoderPart`. rows, precision: of a micro-batch, for cut: measured.
        optimizer: which is to be; copies that share its state (zero: 1) do so in another way for muon.

        Raises ShunterError for a layout that cannot be.
        """
        self.decoder, self.world, self.device = decoder, world, world.device
        self.precision = "fp32"
        grid, mesh = world.mesh.grid, world.mesh
        costs, _, head = decoder_costs(decoder.spec, row_length)
        self.order = parallel.order(head * parallel.pp / sum(costs))
        check_layout(decoder.spec, parallel, self.order, row_length)
        if parallel.offload:
            batch = rows * parallel.data * self.order.microbatches
            laid = Plan.make(decoder.spec, parallel, row_length, batch, bf16=precision == "bf16")
            must_have_room(laid, world.rank)
        measured = None
        if parallel.cut == "measured" and self.order.stages > 1:
            measured = tell_costs(decoder, row_length, rows, world, precision)
        self.cut = cut_decoder(decoder, parallel, self.order, row_length, measured)
        mine = [stage for stage, rank in enumerate(self.order.placement) if rank == world.stage]
        algorithm = algorithm_of(self.order)
        own = vocabulary_rows(decoder.spec.vocab_size, world.stage, grid.pp)
        ends = holdings(decoder.spec, grid, mesh.place) if algorithm is not None else {}
        self.part = DecoderPart(
            decoder,
            mesh,
            self.cut,
            mine,
            world.device,
            sequence=parallel.sequence,
            layers_only=algorithm is not None,
            more={name: pipeline_cut(ends[name], *own) for name in ENDS if name in ends},
            compiled=compiled,
            again=parallel.again(decoder.spec.num_layers),
            selective=parallel.recompute == "selective",
            aside=parallel.aside(decoder.spec.num_layers),
            reshard=parallel.reshard,
            narrow=parallel.gather == "bf16",
            by_program=grid.pp > 1,
            zero=(muon_takes if optimizer == "muon" else _by_rows) if parallel.zero else None,
            pad=parallel.pad_experts,
            layers=parallel.own_grids(),
            ends=parallel.ends_grid,
            fill=fill,
        )
        self.pads = parallel.pad_experts
        self.at_least = {str(action): seconds for action, seconds in (parallel.at_least or {}).items()}
        # By grid: which positions of a row are here, where rows are spread.
        self.spreads: dict[Grid | None, Tensor | None] = {}
        for each in (None, *self.part.others):
            peers = mesh.at(each).peers("cp")
            there = self.part.under(each)
            self.spreads[each] = (
                spread_rows(there, peers, row_length, parallel.attention) if peers.size > 1 else None
            )
        self.spread = self.spreads[None]
        self.views = Views(self.part, world, parallel.sequence) if self.part.others else None
        self.rows: list[Rows] = []
        halves = any(action.op == WEIGHT for actions in self.order.actions for action in actions)
        self.stages = {
            number: Stage(self._computes(module), module, defer=halves)
            for number, module in self.part.modules.items()
        }
        first, last = self.order.placement[0], self.order.placement[-1]
        self.vocabulary: VocabularyPart | None = None
        if algorithm is not None:
            assert world.groups is not None
            self.vocabulary = VocabularyPart(
                decoder.embed.weight,
                decoder.embed.weight if decoder.head is None else decoder.head.weight,
                own[0],
                world.groups,
                world.stage,
                first,
                last,
                lambda microbatch: self.rows[microbatch],
                algorithm=algorithm,
            )
        self.gathers = self.part.sharded and self.part.by_program
        self.executor = self._executor(parallel.lowered(self.order, sharded=self.gathers))
        self._forwards: dict[int, Executor] = {}
        tied = decoder.spec.tied and first != last and algorithm is None
        self.twice = frozenset({"embed.weight"}) if tied else frozenset()
        trained = decoder.embed.weight.requires_grad  # a frozen one stays the same by itself
        self.shares_tied = tied and trained and world.stage in (first, last)

    @property
    def elsewhere(self) -> frozenset[str]:
        """What the first stage's rank holds too, and writes."""
        return self.twice if self.world.stage != self.order.placement[0] else frozenset()

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What the optimizer shall work on: this rank's parts by name; see `DecoderPart`."""
        return self.part.parameters

    def total(self, values: Sequence[float]) -> list[float]:
        data = self.world.data
        if data.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        return list(self.world.sum(sums, data).tolist())

    def gradients(
        self,
        batches: Sequence[Batch],
        coefficients: Sequence[Tensor],
        z_loss: float,
        dropping: Dropping | None = None,
    ) -> tuple[Tensor, Tensor]:
        if len(batches) != self.order.microbatches:
            raise ValueError(f"{len(batches)} micro-batches, the program is of {self.order.microbatches}")
        self._load(batches, coefficients, z_loss, dropping)
        self._begin(batches)
        losses = self._run(self.executor, train=True)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for microbatch, loss in losses.items():
            plain = self.rows[microbatch].plain
            assert plain is not None
            sums += torch.stack([loss.double(), plain.double()])
        self.rows = []
        self._sum_losses(sums)
        self._finish()
        return sums[0], sums[1]

    def with_heads(self, batches: Sequence[Batch], heads: Sequence[Head], *, train: bool) -> None:
        """Passes whose last stage hands its hidden states to `heads`, one a micro-batch.

        train: then backward, and gradients are added up as `gradients` does; else without gradients, of any
        number of batches, but the same on all ranks.
        """
        if self.vocabulary is not None or self.part.ends is not None:
            raise ValueError("the head has a layout of its own, and there is no other for it")
        if train and len(batches) != self.order.microbatches:
            raise ValueError(f"{len(batches)} micro-batches, the program is of {self.order.microbatches}")
        self._load(batches, [torch.zeros(batch.targets.shape) for batch in batches], 0.0)
        for rows, head in zip(self.rows, heads, strict=True):
            rows.head = head
        if train:
            self._begin(batches)
            self._run(self.executor, train=True)
            self._finish()
        else:
            with torch.no_grad():
                self._run(self._forward(len(batches)), train=False)
            self.part.give_up()
        self.rows = []

    def _begin(self, batches: Sequence[Batch]) -> None:
        if self.decoder.spec.experts is not None:
            real = sum(int((batch.segments >= 0).sum()) for batch in batches)
            begin_step(self.decoder, int(self.total([real])[0]), self._most_rows(batches))

    def _finish(self) -> None:
        """After the last backward: every gradient is the whole one of what this rank holds."""
        with answering(self.world.rank, "add up gradients"):
            self.part.finish()
            sum_load(self.decoder, self.world.mesh.peers(*DENSE[1:]))
        self._add_tied()

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch], coefficients: Sequence[Tensor]) -> Tensor:
        executor, data = self._forward(len(batches)), self.world.data
        shares = [share(batch, factors, data) for batch, factors in zip(batches, coefficients, strict=True)]
        self._load([batch for batch, _ in shares], [factors for _, factors in shares], 0.0)
        losses = self._run(executor, train=False)
        self.part.give_up()
        self.rows = []
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for loss in losses.values():
            total += loss
        return self._sum_losses(total)

    def _forward(self, microbatches: int) -> Executor:
        """Walks forward passes alone."""
        executor = self._forwards.get(microbatches)
        if executor is None:
            order = forward_waves(self.order.placement, microbatches)
            if self.vocabulary is not None:
                order = parallel_vocabulary(order, self.vocabulary.algorithm)
            executor = self._forwards[microbatches] = self._executor(lower(assemble(order)))
        return executor

    def _most_rows(self, batches: Sequence[Batch]) -> int:
        """Of a micro-batch on any rank, where experts are filled up: what is sent is equally large then."""
        if not self.pads:
            return 0
        most = torch.tensor(max(len(batch.tokens) for batch in batches), device=self.device)
        if self.world.data.size > 1:
            with answering(self.world.rank, "compare rows"):
                dist.all_reduce(most, dist.ReduceOp.MAX, group=self.world.data.group)
        return int(most)

    def _sum_losses(self, sums: Tensor) -> Tensor:
        """Tensor ranks all have the loss of their tokens; other ranks have those of others."""
        if self.world.mesh.at(self.part.ends).place["tp"]:
            sums.zero_()
        return self.world.sum(sums)

    def _executor(self, program: Program) -> Executor:
        handlers = self.vocabulary.handlers() if self.vocabulary is not None else {}
        if self.gathers:
            handlers = {**handlers, **sharded_handlers(self.stages)}
        world = self.world
        return Executor(
            program,
            world.stage,
            self.stages,
            world.groups,
            self.device,
            handlers=handlers,
            at_least=self.at_least,
        )

    def _run(self, executor: Executor, *, train: bool) -> dict[int, Tensor]:
        """Walk the program; the losses, where the last stage is."""
        vocabulary = self.vocabulary
        if vocabulary is None:
            return executor.run(self._key)
        vocabulary.prepare(train, torch.bfloat16 if self.precision == "bf16" else None)
        try:
            return executor.run(self._key) | vocabulary.losses
        finally:
            vocabulary.drop()

    def clip(self, limit: float) -> Tensor:
        square = self.part.squared_norm(self.twice).to(self.device)
        parameters = self.parameters.values()
        exact = any(parameter.dtype == torch.float64 for parameter in parameters)
        norm = self.world.sum(square).sqrt()
        norm = norm if exact else norm.float()
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def gather(self, whole: Decoder) -> bool:
        """Put all ranks' weights into rank 0's `whole`, which may be on the meta device; every rank calls it.
        True on rank 0."""
        found = self.whole(self.part.state)
        if found is None:
            return False
        whole.load_state_dict(found, strict=True, assign=True)
        return True

    def whole(
        self, parts: Mapping[str, Tensor], held: Mapping[str, Holding] | None = None
    ) -> dict[str, Tensor] | None:
        """Tensors that are cut as the weights of these names are, put together on rank 0's CPU.

        held: otherwise; `part.kept` for gradients and an optimizer's state.
        """
        world, held = self.world, held or self.part.held
        mine = {
            name: tensor
            for name, tensor in parts.items()
            if held[name].is_first(world.mesh.at(held[name].grid).place) and name not in self.elsewhere
        }
        pieces = {name: held[name].piece for name in mine}
        with answering(world.rank, "bring the weights together"):
            return collect(mine, pieces, world.mesh.everyone, world.device)

    def together(self, whole: Mapping[str, Tensor]) -> Together:
        """What brings all weights, and buffers that are learnt, together in `whole`: tensors of the same
        names on this rank's device. Every rank calls it."""
        world, state = self.world, self.part.state
        pieces = {name: self.part.held[name].piece for name in state}
        copies = [world.mesh.grid.coordinates(rank)["dp"] for rank in range(world.size)]
        return Together(state, pieces, whole, world.mesh.everyone, world.device, copies)

    def _computes(self, module: DecoderStage) -> Compute:
        def compute(inputs: Tree, microbatch: int) -> Tree:
            if torch.is_grad_enabled():
                self.part.last_pass(microbatch == self.order.microbatches - 1)
            with autocast(self.device, self.precision):
                made: Tree = module(inputs, self.rows[microbatch])
            return made

        return compute

    def _load(
        self,
        batches: Sequence[Batch],
        coefficients: Sequence[Tensor],
        z_loss: float,
        dropping: Dropping | None = None,
    ) -> None:
        def put(array: Tensor) -> Tensor:
            """This rank's positions of whole rows."""
            whole = array.to(self.device, non_blocking=True)
            return whole if self.spread is None else whole[:, self.spread]

        def plan(batch: Batch, number: int) -> SegmentPlan:
            there = torch.from_numpy(batch.segments).to(self.device)
            if dropping is None:
                # Answers (`post.batch`, a room above) may share the prompt that begins their row.
                return self._documents(None, there, None, shared=getattr(batch, "shared", False))
            masks = dropping.masks(number, there.shape[1], self.device, self.spread)
            return self._documents(None, there, masks)

        self.rows = [
            Rows(
                put(torch.from_numpy(batch.tokens)),
                put(torch.from_numpy(batch.positions)),
                put(torch.from_numpy(batch.targets)),
                put(factors),
                plan(batch, number),
                z_loss,
            )
            for number, (batch, factors) in enumerate(zip(batches, coefficients, strict=True))
        ]
        if self.views is not None:
            self.views.add(self.rows, batches, coefficients, dropping, self.spreads, self._documents)

    def _documents(
        self, grid: Grid | None, segments: Tensor, masks: Masks | None, *, shared: bool = False
    ) -> SegmentPlan:
        """Of whole rows, who sees whom under a grid; masks: of this rank's positions. shared: all see the
        first segment of their row; not where rows are spread."""
        spread, tokens = self.spreads[grid], self.part.ways[grid]
        if shared and spread is not None:
            raise ValueError("rows whose first segment all see cannot be spread over context ranks")
        if spread is None:
            found = SegmentPlan.sharing(segments) if shared else SegmentPlan.build(segments)
        else:
            ranks = self.world.mesh.at(grid).peers("cp").size
            window = self.decoder.spec.sliding_window
            sight = ContextSight(segments.shape[1], ranks, segments.long(), window)
            found = SegmentPlan((), whole=sight, real=segments[:, spread] >= 0)
        if tokens is not None and found.real is not None:
            # Experts see this tensor rank's tokens.
            found = replace(found, real=tokens.mine(found.real))
        if masks is not None:
            if tokens is not None:
                masks = replace(masks, own=torch.stack([tokens.mine(half) for half in masks.keys]))
            found = replace(found, masks=masks)
        return found

    def _key(self, microbatch: int) -> object:
        return tuple(self.rows[microbatch].tokens.shape)

    def _add_tied(self) -> None:
        """Both ends of a tied weight get the sum of their gradients: the same bits on both."""
        if not self.shares_tied:
            return
        weight = self.parameters["embed.weight"]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        low, high = sorted({self.order.placement[0], self.order.placement[-1]})
        groups = self.world.groups
        assert groups is not None
        ranks = groups.ranks
        # There and back: the lower rank adds up, so that both have its sum.
        with answering(self.world.rank, "add up a tied weight's gradient"):
            if self.world.stage == high:
                dist.send(weight.grad, ranks[low], group=groups.down)
                dist.recv(weight.grad, ranks[low], group=groups.up)
            else:
                other = torch.empty_like(weight.grad)
                dist.recv(other, ranks[high], group=groups.down)
                weight.grad += other
                dist.send(weight.grad, ranks[high], group=groups.up)


def _by_rows(name: str, shape: tuple[int, ...]) -> bool:
    """AdamW updates each value by itself."""
    return False
