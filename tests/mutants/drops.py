"""Dropout, experts that are filled up, and adapters gone wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shunter.layout.holding import Holding
from shunter.layout.piece import Piece
from shunter.models import adapter_sharding, dropout
from shunter.models.dropout import Masks
from shunter.models.packed import PackedWeight
from shunter.models.spec import ExpertsSpec
from shunter.parallel.experts import Dispatcher, Route
from shunter.parallel.mesh import Peers
from shunter.train.dropping import Dropping
from tests.mutants.mutant import Mutant


def one_inside(original: Any) -> Any:
    return lambda self, x, layer, operation, first: original(self, x, layer, operation, 0)


def others_outside(original: Any) -> Any:
    def mutant(self: Masks, x: Tensor, layer: int, operation: int) -> Tensor:
        return original(replace(self, own=self.keys[:, :, : x.shape[1]]), x, layer, operation)

    return mutant


def same_rows(original: Any) -> Any:
    return lambda config, rows, stream, step, total, data: original(
        config, rows, stream, step, total, Peers.alone()
    )


def one_step(original: Any) -> Any:
    return lambda config, rows, stream, step, total, data: original(config, rows, stream, 0, total, data)


def one_layer(original: Any) -> Any:
    return lambda keys, share, layer, *more: original(keys, share, 0, *more)


def places_of_part(original: Any) -> Any:
    return lambda self, number, length, device, places: original(self, number, len(places), device)


def in_order_of_arrival(original: Any) -> Any:
    def mutant(self: Dispatcher, rows: int, device: torch.device) -> Route:
        route = original(self, rows, device)
        return replace(route, order=torch.arange(len(route.order), device=device))

    return mutant


def one_row(original: Any) -> Any:
    return lambda self, rows, length, parts=1: original(self, 1, length, parts)


def as_if_whole(original: Any) -> Any:
    return lambda self, piece: original(self, Piece.full(piece.local_shape))


def summed_over_copies_alone(original: Any) -> Any:
    def mutant(*given: Any) -> tuple[Holding, Holding]:
        a, b = original(*given)
        return replace(a, partial=("edp",)), replace(b, partial=("edp",))

    return mutant


MUTANTS = [
    Mutant(
        "tensor ranks drop the same inside",
        "One stream for all tensor ranks: each drops alike of its features (arXiv 1909.08053, section 3).",
        "dropped",
        "gradient",
        Masks,
        "inside",
        one_inside,
    ),
    Mutant(
        "tensor ranks drop as the first outside",
        "With tokens shared out, each takes the masks of the first rank's tokens.",
        "dropped",
        "gradient",
        Masks,
        "outside",
        others_outside,
    ),
    Mutant(
        "a reused random stream of rows",
        "Each data rank counts its rows from 0 and drops the same of them.",
        "dropped",
        "gradient",
        Dropping,
        "of",
        same_rows,
    ),
    Mutant(
        "a reused random stream of steps",
        "Each step drops what the first one dropped.",
        "dropped",
        "loss",
        Dropping,
        "of",
        one_step,
    ),
    Mutant(
        "a reused random stream of layers",
        "The embedding and all layers drop alike.",
        "dropped",
        "gradient",
        dropout,
        "kept",
        one_layer,
    ),
    Mutant(
        "places counted in a rank's part",
        "Each context rank counts its tokens from 0: the same masks on all.",
        "dropped in parts",
        "gradient",
        Dropping,
        "masks",
        places_of_part,
    ),
    Mutant(
        "filled experts' rows in the order of arrival",
        "Rows of one sender stand together, not those of one expert.",
        "filled",
        "gradient",
        Dispatcher,
        "filled",
        in_order_of_arrival,
    ),
    Mutant(
        "an expert's room that of a single row",
        "A row's capacity taken for that of a micro-batch: what is beyond it is lost.",
        "filled",
        "gradient",
        ExpertsSpec,
        "room",
        one_row,
    ),
    Mutant(
        "a part of a packed weight read as a whole one",
        "Columns counted from the part's first: bytes and scales of others.",
        "packed",
        "gradient",
        PackedWeight,
        "place",
        as_if_whole,
    ),
    Mutant(
        "experts' adapters summed over copies alone",
        "What is whole on all etp ranks has a part of its gradient on each.",
        "adapted experts",
        "gradient",
        adapter_sharding,
        "_expert_adapter",
        summed_over_copies_alone,
    ),
]
