"""Experts, random streams, Muon and checkpoints gone wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from shunter.layout.grid import DENSE, Grid
from shunter.layout.holding import Holding
from shunter.layout.piece import Piece
from shunter.models import sharding
from shunter.parallel import experts, part
from shunter.parallel.experts import Dispatcher, Route
from shunter.parallel.mesh import Peers
from shunter.train import cut_muon, pipeline, shares
from shunter.train.checkpoint import shared
from shunter.train.cut_muon import CutMuon
from shunter.train.muon import Muon
from tests.mutants.mutant import Mutant

Parts = Iterable[tuple[str, Piece, Tensor]]


def over_dense(original: Any) -> Any:
    def mutant(*args: Any) -> Holding:
        return replace(original(*args), partial=sharding.DATA)

    return mutant


def doubled(original: Any) -> Any:
    def mutant(parameters: dict[str, Tensor], held: Any, mesh: Any) -> None:
        original(parameters, held, mesh)
        for name, parameter in parameters.items():
            if ".experts." in name and parameter.grad is not None:
                parameter.grad *= mesh.grid.ep

    return mutant


def as_arrived(original: Any) -> Any:
    def mutant(self: Dispatcher, counts: Tensor) -> Route:
        route = original(self, counts)
        return replace(route, order=torch.arange(len(route.order)))

    return mutant


def without_weights(original: Any) -> Any:
    def mutant(x: Tensor, weights: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        rows, found = original(x, weights, pairs)
        return rows, torch.ones_like(found)

    return mutant


def deaf_router(original: Any) -> Any:
    def mutant(ctx: Any, rows: Tensor, weights: Tensor) -> Any:
        found = original(ctx, rows, weights)
        return found[0], 0 * found[1], None

    return mutant


def own_tokens(original: Any) -> Any:
    return lambda model, tokens, rows=0: original(model, 0, rows)


def own_columns(original: Any) -> Any:
    def mutant(rows: Tensor, sizes: list[int], peers: Peers) -> Tensor:
        return rows.split(sizes)[peers.index].clone()

    return mutant


def columns_as_one(original: Any) -> Any:
    def mutant(spec: Any, columns: bool, whole: Holding, grid: Grid, place: Any) -> Holding:
        found = original(spec, columns, whole, grid, place)
        if not columns:
            return found
        piece = whole.piece.share(0, place["ep"], grid.ep).share(1, place["etp"], grid.etp)
        return replace(found, piece=piece)

    return mutant


def parts_alone(original: Any) -> Any:
    """Each rank makes an update of its own part, as if that were the matrix."""

    def mutant(self: CutMuon, rate: float) -> None:
        for matrix in self.matrices.values():
            p = matrix.parameter
            if p.grad is None or not p.numel():
                continue
            momentum = self.__dict__.setdefault("alone", {}).setdefault(id(p), torch.zeros_like(p))
            view = torch.zeros_like(p).requires_grad_()
            for at, grad, mine in zip(
                cut_muon.matrices(view.detach(), None),
                cut_muon.matrices(p.grad, None),
                cut_muon.matrices(momentum, None),
                strict=True,
            ):
                each = at.requires_grad_()
                muon = Muon([each], lr=rate, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
                muon.state[each] = {"momentum_buffer": mine}
                each.grad = grad
                muon.step()
            p.detach().mul_(1 - rate * self.weight_decay).add_(view.detach())

    return mutant


def projections_as_one(original: Any) -> Any:
    return lambda tensor, rows: original(tensor, None)


def part_of_first(original: Any) -> Any:
    """The owner sends each rank the rows that it has itself."""

    def mutant(whole: Tensor, piece: Piece) -> Tensor:
        size = piece.local_shape
        return whole[tuple(slice(0, length) for length in size)].clone()

    return mutant


def local_numbers(original: Any) -> Any:
    """Each stage numbers its layers from 0."""

    def mutant(folder: Any, rank: int, parts: Parts, *more: Any) -> Any:
        named = list(parts)
        layers = {int(each[0].split("layers.")[1].split(".")[0]) for each in named if "layers." in each[0]}
        first = min(layers, default=0)

        def renamed(name: str) -> str:
            begin, _, end = name.partition("layers.")
            number, _, rest = end.partition(".")
            return f"{begin}layers.{int(number) - first}.{rest}" if end else name

        return original(folder, rank, [(renamed(n), piece, t) for n, piece, t in named], *more)

    return mutant


def one_early(original: Any) -> Any:
    """Parts of rows begin one too early in the file: sizes that do not divide, rounded down."""

    def mutant(folder: Any, rank: int, parts: Parts, *more: Any) -> Any:
        found = original(folder, rank, parts, *more)
        for entry in found.values():
            for chunk in entry["chunks"]:
                chunk["offsets"] = [
                    at - (at > 0) if dim == 0 else at for dim, at in enumerate(chunk["offsets"])
                ]
        return found

    return mutant


def rows_in_one(original: Any) -> Any:
    """A part of several ranges is read as one that begins where the first does."""

    def mutant(folder: Any, described: Any, parts: Parts) -> None:
        def whole(piece: Piece) -> Piece:
            sizes = piece.local_shape
            begins = [
                min(held[0][0], size - length) if held else 0
                for held, size, length in zip(piece.ranges, piece.shape, sizes, strict=True)
            ]
            ranges = zip(begins, sizes, strict=True)
            return Piece(piece.shape, tuple(((begin, begin + size),) for begin, size in ranges))

        original(folder, described, [(name, whole(piece), tensor) for name, piece, tensor in parts])

    return mutant


def first_of_dense(original: Any) -> Any:
    def mutant(self: Holding, place: Any) -> bool:
        return all(place[axis] == 0 for axis in DENSE[1:] if axis not in self.cut)

    return mutant


def moments_swapped(original: Any) -> Any:
    def mutant(folder: Any, rank: int, parts: Parts, *more: Any) -> Any:
        def other(name: str) -> str:
            for mine, theirs in (("exp_avg_sq", "exp_avg"), ("exp_avg", "exp_avg_sq")):
                if name.endswith(f".{mine}"):
                    return name.removesuffix(mine) + theirs
            return name

        return original(folder, rank, [(other(name), piece, tensor) for name, piece, tensor in parts], *more)

    return mutant


MUTANTS = [
    Mutant(
        "expert gradients over the dense group",
        "Copies of an expert stand on other ranks than copies of the rest: gradients of different experts "
        "are added up.",
        "experts",
        "gradient",
        sharding,
        "expert_holding",
        over_dense,
    ),
    Mutant(
        "expert gradients times ep",
        "Expert gradients doubled (torch #160285).",
        "experts",
        "gradient",
        part,
        "add_up_gradients",
        doubled,
    ),
    Mutant(
        "rows not sorted by expert after the exchange",
        "Rows arrive by sender; the grouped product takes them for sorted by expert.",
        "experts",
        "loss",
        Dispatcher,
        "plan",
        as_arrived,
    ),
    Mutant(
        "probabilities not sent",
        "The weights stay behind, and the experts' outputs are added up as they are.",
        "experts",
        "loss",
        experts,
        "spread",
        without_weights,
    ),
    Mutant(
        "gradients of probabilities not sent back",
        "The router learns from its losses only, and nothing fails.",
        "experts",
        "gradient",
        experts._Send,
        "backward",
        deaf_router,
    ),
    Mutant(
        "router's losses over a rank's own tokens",
        "The auxiliary loss is a mean over each micro-batch of each rank: it changes with the layout.",
        "experts",
        "gradient",
        pipeline,
        "begin_step",
        own_tokens,
    ),
    Mutant(
        "load not added up",
        "Biases that balance experts follow each rank's own load, and copies drift apart (arXiv 2408.15664 "
        "needs the load of all).",
        "experts",
        "weight",
        pipeline,
        "sum_load",
        lambda original: lambda model, peers: None,
    ),
    Mutant(
        "parts of an expert's output not added up",
        "The columns of an expert stand on several ranks (etp), each of which keeps its own part of the sum.",
        "columns",
        "loss",
        experts,
        "reduce_rows",
        own_columns,
    ),
    Mutant(
        "an expert's gate and up cut as one block",
        "The fused SwiGLU again, within each expert.",
        "columns",
        "loss",
        sharding,
        "expert_holding",
        columns_as_one,
    ),
    Mutant(
        "random stream reused by ranks",
        "Each rank counts its rows from 0: the same noise on all.",
        "noise",
        "tokens",
        shares,
        "balanced",
        lambda original: lambda size, parts, index: original(size, parts, 0),
    ),
    Mutant(
        "random stream reused by micro-batches",
        "Each micro-batch begins the stream anew (Megatron-LM #2658 is of this family).",
        "noise",
        "tokens",
        shares,
        "accumulate",
        lambda original: lambda sizes, initial: repeat(initial),
    ),
    Mutant(
        "Muon of parts",
        "Each rank orthogonalises its own part, though the update is one of the whole matrix.",
        "muon",
        "weight",
        CutMuon,
        "step",
        parts_alone,
    ),
    Mutant(
        "Muon of fused projections",
        "A fused product's projections are taken for one matrix once it is cut.",
        "muon",
        "weight",
        cut_muon,
        "matrices",
        projections_as_one,
    ),
    Mutant(
        "Muon's update of the first rank",
        "Every rank gets the part of the update that belongs to the first.",
        "muon",
        "weight",
        cut_muon,
        "cut",
        part_of_first,
    ),
    Mutant(
        "layers numbered within a stage",
        "Each stage writes its layers as 0, 1, ...: the second stage's are lost.",
        "stages saved",
        "error",
        shared,
        "write_parts",
        local_numbers,
    ),
    Mutant(
        "a part at the wrong offset",
        "Offsets rounded down where rows do not divide.",
        "sharded saved",
        "error",
        shared,
        "write_parts",
        one_early,
    ),
    Mutant(
        "a fused part read as one range",
        "q, k and v rows of a tensor rank are read as if they stood together.",
        "to tensor ranks",
        "state",
        shared,
        "read_parts",
        rows_in_one,
    ),
    Mutant(
        "experts written by the first dense rank only",
        "Which rank writes is asked of the dense grid: other experts are in no file.",
        "experts saved",
        "error",
        Holding,
        "is_first",
        first_of_dense,
    ),
    Mutant(
        "a state under another's name",
        "Moments are saved in an order and read by another (AReaL #1468: moments lost on load).",
        "to tensor ranks",
        "state",
        shared,
        "write_parts",
        moments_swapped,
    ),
]
