"""This rank's part of a decoder: which parameters, which parts of them, and how it computes with them.

The order is torchtitan's (arXiv 2410.06511, section 2): the stages are chosen, weights cut over tensor ranks,
rows spread over context ranks, layers compiled and recomputed, and what is left sharded by `fully_shard`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from shunter.layout.grid import Grid
from shunter.layout.holding import Holding
from shunter.layout.zero import Whole
from shunter.models.adapted_experts import AdaptedExperts
from shunter.models.adapter_sharding import adapted_holdings, place_packed
from shunter.models.decoder import Decoder, RMSNorm
from shunter.models.moe import Experts, MoE
from shunter.models.router import Router
from shunter.models.sharding import end_holdings, holdings, layer_of
from shunter.models.uncompiled import compiling
from shunter.parallel.collect import cut
from shunter.parallel.context.zigzag import zigzag
from shunter.parallel.decoder import decoder_stages, drop_others
from shunter.parallel.experts import reach_experts
from shunter.parallel.gradients import add_up_gradients, add_up_shared, squared_norm
from shunter.parallel.mesh import Mesh, Peers
from shunter.parallel.offload import offload_layers
from shunter.parallel.recompute import recompute_layer
from shunter.parallel.sharded import hand_over
from shunter.parallel.tensor import Tokens, VocabularyRows, first_row, split_embedding, split_layers
from shunter.parallel.zero import SharedState

Fill = Callable[[str, Tensor], None]

SHARDING = ("fsdp", "cp")  # ranks that share one copy of the weights, where weights are sharded


class DecoderPart:
    """What one rank holds of a decoder.

    weights:    this rank's parts by name, plain tensors that share memory with what the model computes with.
    held:       which part of the whole each is.
    parameters: what the optimizer works on: the weights, or where copies share its state (`zero`) some rows
                of each, or some; after `finish` their `.grad` is the whole gradient of that part.
    kept:       which part of the whole each of these is, and its state.
    modules:    the stages, by number.
    """

    def __init__(
        self,
        decoder: Decoder,
        mesh: Mesh,
        bounds: Sequence[int],
        stages: Sequence[int],
        device: torch.device,
        *,
        sequence: bool = True,
        layers_only: bool = False,
        more: Mapping[str, Holding] | None = None,
        compiled: bool = False,
        again: Sequence[int] = (),
        selective: bool = False,
        aside: Sequence[int] = (),
        reshard: bool = True,
        narrow: bool = False,
        by_program: bool = False,
        zero: Whole | None = None,
        pad: bool = False,
        layers: Mapping[int, Grid] | None = None,
        ends: Grid | None = None,
        fill: Fill | None = None,
    ) -> None:
        """decoder: whole, on the CPU, or on the meta device; it keeps this rank's part, and the rest is on
        the meta device then. fill: gives a tensor that was there its first values, by its name; one at a
        time, so that a rank needs no room for the whole.

        bounds, stages: first layer of each stage, and the numbers of those that are here.
        layers_only: embedding and head are computed elsewhere. more: parts beside the stages'.
        compiled: each layer is, by itself. again: layers that are computed again for their backward;
        selective: all but what is dear. aside: layers whose inside waits in the host's memory.
        reshard: give gathered weights up between forward and backward. narrow: gather layers' matrices in
        bfloat16, as products under autocast take them; their gradients are added up in float32.
        by_program: the program, not `fully_shard`, decides when weights are gathered.
        zero: copies share the optimizer's state; it says of which parameters an update is made of the whole.
        pad: fill experts up to their capacity; see `MoE`. layers: those that have another of the mesh's grids
        than the rest; ends: that of embedding, last norm and head, likewise.
        """
        self.decoder, self.mesh = decoder, mesh
        self.layers: dict[int, Grid] = dict(layers or {})
        self.ends = ends
        self.others = tuple(dict.fromkeys([*self.layers.values(), *([ends] if ends else [])]))
        self.sharded = any(grid.fsdp > 1 for grid in (mesh.grid, *self.others))
        self.by_program = by_program
        plain, declared = self._declare(sequence)
        found = decoder_stages(decoder, bounds, stages, layers_only=layers_only).values()
        owned = {name for stage in found for name in stage.owned()}
        self.held = {name: declared[name] for name in declared if name in owned} | dict(more or {})
        drop_others(decoder, set(self.held))
        localise(decoder, self.held, device, fill)
        place_packed(decoder, plain)
        # By grid: how tokens come into products and out of them.
        self.ways: dict[Grid | None, Tokens | None] = {
            grid: split_layers(self.under(grid), mesh.at(grid).peers("tp"), sequence=sequence)
            for grid in (None, *self.others)
        }
        split_embedding(decoder, self.held, self.ways[ends])
        for number, layer in enumerate(decoder.layers):
            its = mesh.at(self.layers.get(number))
            for module in layer.modules():
                if isinstance(module, MoE):
                    reach_experts(
                        module,
                        its.peers("ep"),
                        its.peers("etp"),
                        sequence=its.peers("cp", "tp"),
                        places=partial(_places, its.grid.cp),
                        pad=pad,
                    )
        self.modules = decoder_stages(decoder, bounds, stages, layers_only=layers_only)
        for number, stage in self.modules.items():
            stage.grids = [self.layers.get(n) for n in range(bounds[number], bounds[number + 1])]
            stage.ends, stage.tokens = ends, self.ways[ends]
            if stage.has_head and stage.tokens is not None:
                name = "embed.weight" if decoder.spec.tied else "head.weight"
                stage.others = VocabularyRows(
                    first_row(self.held[name]), mesh.at(ends).peers("tp"), decoder.spec.vocab_size
                )
        if compiled:
            compiling()
            for stage in self.modules.values():
                for layer in stage.layers:
                    layer.forward = torch.compile(layer.forward)
        for number in again:
            recompute_layer(decoder.layers[number], selective=selective)
        if aside:
            mine = ({n: decoder.layers[n] for n in range(bounds[s], bounds[s + 1])} for s in stages)
            offload_layers(mine, aside, device)
        if self.sharded:
            self._shard(device, reshard, narrow)
        self.weights = self._plain()
        self.shared: SharedState | None = None
        self.parameters, self.kept = self.weights, self.held
        if zero is not None:
            self.shared = SharedState(self.weights, self.held, mesh, zero)
            self.parameters, self.kept = self.shared.parameters, self.shared.held

    def under(self, grid: Grid | None) -> nn.ModuleList:
        """The decoder's layers that have this grid; None: the layout's own."""
        return nn.ModuleList(
            layer for number, layer in enumerate(self.decoder.layers) if self.layers.get(number) == grid
        )

    def _declare(self, sequence: bool) -> tuple[dict[str, Holding], dict[str, Holding]]:
        """What this rank holds of each parameter: without adapters, and with them."""
        decoder, mesh = self.decoder, self.mesh
        plain = holdings(decoder.spec, mesh.grid, mesh.place, sequence=sequence)
        declared = adapted_holdings(decoder, plain, mesh.grid)
        for grid in dict.fromkeys(self.layers.values()):
            its = holdings(decoder.spec, grid, mesh.at(grid).place, sequence=sequence)
            for found, theirs in ((plain, its), (declared, adapted_holdings(decoder, its, grid))):
                for name, holding in theirs.items():
                    if self.layers.get(layer_of(name)) == grid:  # type: ignore[arg-type]
                        found[name] = replace(holding, grid=grid)
        if self.ends is not None:
            place = mesh.at(self.ends).place
            for name, holding in end_holdings(decoder.spec, self.ends, place, sequence=sequence).items():
                plain[name] = declared[name] = replace(holding, grid=self.ends)
        return plain, declared

    def _shard(self, device: torch.device, reshard: bool, narrow: bool) -> None:
        policy = MixedPrecisionPolicy()
        if narrow:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        again = reshard and not self.by_program
        made: dict[tuple[int, ...], DeviceMesh] = {}

        def over(peers: Peers) -> DeviceMesh:
            if peers.ranks not in made:
                made[peers.ranks] = _device_mesh(peers, device)
            return made[peers.ranks]

        for stage in self.modules.values():
            stage.into_grad = False
            elsewhere: set[nn.Parameter] = set()
            for layer, grid in zip(stage.layers, stage.grids, strict=True):
                its = self.mesh.at(grid)
                if its.grid.fsdp == 1:
                    elsewhere.update(layer.parameters())
                    continue
                mesh, copies = over(its.peers(*SHARDING)), its.peers("edp")
                for experts in (p for p in layer.modules() if isinstance(p, (Experts, AdaptedExperts))):
                    # Copies of an expert are on other ranks than copies of the rest.
                    if copies.size > 1:
                        fully_shard(
                            experts,
                            mesh=over(copies),
                            reshard_after_forward=again,
                            mp_policy=policy,
                        )
                    else:
                        elsewhere.update(experts.parameters())
                if (
                    narrow
                ):  # what is no product's weight travels whole: norms, and routers, whose choice is sharp
                    whole: list[nn.Module] = [p for p in layer.modules() if isinstance(p, (RMSNorm, Router))]
                    fully_shard(whole, mesh=mesh, reshard_after_forward=again)
                fully_shard(
                    layer,
                    mesh=mesh,
                    reshard_after_forward=again,
                    mp_policy=policy,
                    ignored_params=elsewhere,
                )
            root = self.mesh.at(self.ends)
            if root.grid.fsdp == 1:  # some layers are sharded, embedding and head are not
                inside = {p for layer in stage.layers for p in layer.parameters()}
                elsewhere.update(p for p in stage.parameters() if p not in inside)
                every = (self.mesh.grid, *self.others)
                root = self.mesh.at(next(grid for grid in every if grid.fsdp > 1))
                if not self.by_program:
                    _end_prefetching(stage)
            fully_shard(
                stage,
                mesh=over(root.peers(*SHARDING)),
                reshard_after_forward=False,
                ignored_params=elsewhere,
            )
            for module in sharded_modules(stage):
                # Sums, not means: each token's weight in the loss is known beforehand. And plain ones: with a
                # factor torch takes another operation in float32, which gloo does not have.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
            if self.by_program:
                hand_over(stage)
        buffers = {name for name, _ in self.decoder.named_buffers()}  # these stay whole
        for name, holding in self.held.items():
            its = self.mesh.at(holding.grid)
            if name in buffers or its.grid.fsdp == 1:
                continue
            peers, copies = its.peers(*SHARDING), its.peers("edp")
            if ".experts." not in name:
                self.held[name] = holding.sharded(peers.index, peers.size, its.real(SHARDING))
            elif copies.size > 1:
                self.held[name] = holding.sharded(copies.index, copies.size, ("edp",))

    @property
    def state(self) -> dict[str, Tensor]:
        """What makes up the model here: the parameters, and buffers that are learnt otherwise."""
        stored = {name: buffer for name, buffer in self.decoder.named_buffers() if name in self.held}
        return {**self.weights, **stored}

    def _plain(self) -> dict[str, nn.Parameter]:
        named = {name: p for name, p in self.decoder.named_parameters() if name in self.held}
        if not self.sharded:
            return dict(named)
        # The optimizer sees plain tensors: DTensors would take its fused and matrix-wise steps from it.
        return {
            name: nn.Parameter(local(p), requires_grad=p.requires_grad) if isinstance(p, DTensor) else p
            for name, p in named.items()
        }

    def last_pass(self, last: bool) -> None:
        """Before a micro-batch: whether its backward is the last one, in which gradients are shared out."""
        if self.sharded and not self.by_program:
            for stage in self.modules.values():
                assert isinstance(stage, FSDPModule)
                stage.set_requires_gradient_sync(last)
                stage.set_is_last_backward(last)

    def give_up(self) -> None:
        """Free gathered weights, after passes without a backward."""
        for stage in self.modules.values():
            for module in sharded_modules(stage):
                module.reshard()

    def finish(self) -> None:
        """After the last backward: add up what other ranks have a part of."""
        if self.sharded:
            for name, parameter in self.decoder.named_parameters():
                if isinstance(parameter, DTensor) and name in self.weights and parameter.grad is not None:
                    self.weights[name].grad = local(parameter.grad)
                    parameter.grad = None
        if self.shared is None:
            add_up_gradients(self.weights, self.held, self.mesh)
        else:
            add_up_shared(self.weights, self.held, self.mesh)
            self.shared.scatter()

    def renew(self) -> None:
        """After an update: have the weights that other copies have updated."""
        if self.shared is not None:
            self.shared.gather()

    def squared_norm(self, twice: frozenset[str] = frozenset()) -> Tensor:
        """This rank's share of the gradient's squared norm; see gradients.squared_norm."""
        return squared_norm(self.parameters, self.kept, self.mesh, twice)


def _end_prefetching(stage: nn.Module) -> None:
    """In its backward each sharded module has the one before it fetched, in the order of all forwards since
    the last update. Where the stage has no weights of its own between two micro-batches, the first would have
    the last layer of the one before fetched, once more and for nothing; so it asks for itself."""
    for layer in getattr(stage, "layers", ()):
        if found := sharded_modules(layer):
            for module in found:
                module.set_modules_to_backward_prefetch([module])
            # But a layer fetches its experts: what is computed again must find them.
            if found[0] is layer and len(found) > 1:
                found[0].set_modules_to_backward_prefetch(found[1:])
            return


def _places(ranks: int, length: int) -> Tensor:
    """Where in a row of `length` the tokens of context and tensor ranks stand, one after the other."""
    return torch.cat(zigzag(length, ranks))


def _device_mesh(peers: Peers, device: torch.device) -> DeviceMesh:
    assert peers.group is not None
    return DeviceMesh.from_group(peers.group, device.type, mesh_dim_names=("shard",))


def sharded_modules(module: nn.Module) -> list[FSDPModule]:
    """Those to which `fully_shard` was applied."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@torch.no_grad()
def localise(
    decoder: nn.Module, held: Mapping[str, Holding], device: torch.device, fill: Fill | None = None
) -> None:
    """Leave the decoder, or a part of one, these parts of its parameters, on the device; one at a time."""

    def real(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_meta or fill is None:
            return tensor.detach()
        whole = torch.empty_like(tensor, device="cpu", requires_grad=False)
        fill(name, whole)
        return whole

    for name, parameter in list(decoder.named_parameters()):
        if (holding := held.get(name)) is None:
            continue
        whole = real(name, parameter)
        part = whole if holding.piece.is_whole else cut(whole, holding.piece)
        parent = decoder.get_submodule(name.rpartition(".")[0])
        mine = nn.Parameter(part.to(device), requires_grad=parameter.requires_grad)
        setattr(parent, name.rpartition(".")[2], mine)
    for name, buffer in list(decoder.named_buffers()):
        if name in held:
            parent = decoder.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], real(name, buffer).to(device))


def local(tensor: Any) -> Tensor:
    """A DTensor's part on this rank, sharing its memory."""
    part: Tensor = tensor.detach().to_local()
    return part


def pipeline_cut(holding: Holding, begin: int, end: int) -> Holding:
    """Rows that this stage alone holds."""
    return replace(holding, piece=holding.piece.take(0, (begin, end)))
