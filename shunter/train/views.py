"""Micro-batches as those layers see them that have a grid of their own, and embedding and head with one.

Under another grid a rank has other rows of a micro-batch, or other tokens of them, than under the layout's
own: all data ranks' rows of a micro-batch, one after the other, are shared out anew. Hidden states turn to
there and back within a stage (`shunter.parallel.turns`); what is known of the rows beforehand, positions,
documents and seeds of dropout, and for embedding and head tokens, targets and coefficients, each data rank
tells the others when a step begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from shunter.data.tokens import Batch
from shunter.layout.grid import DENSE, Grid
from shunter.layout.seats import evenly, seats
from shunter.models.dropout import Masks
from shunter.models.segments import SegmentPlan
from shunter.parallel.collective import all_gather
from shunter.parallel.decoder import Rows, View
from shunter.parallel.exchange import gather_rows
from shunter.parallel.lost import answering
from shunter.parallel.part import DecoderPart
from shunter.parallel.turns import Turns
from shunter.train.dropping import Dropping
from shunter.train.world import World

# (grid, segments of whole rows, what is dropped of this rank's positions) -> who sees whom.
Documents = Callable[[Grid | None, Tensor, Masks | None], SegmentPlan]

# What is told of each token of a row, by number: as int64, coefficients by the bits of a float64.
SEGMENT, POSITION, SEED, TOKEN, TARGET, COEFFICIENT = range(6)
LAYERS, WITH_ENDS = 3, 6  # of these, how many layers need, and embedding and head


class Views:
    """part: whose layers, or ends, have other grids. sequence: as in `DecoderPart`."""

    def __init__(self, part: DecoderPart, world: World, sequence: bool) -> None:
        self.grids, self.world, self.sequence = part.others, world, sequence
        self.ends = part.ends
        self.stage = world.mesh.peers(*DENSE[1:])
        self._turns: dict[tuple[tuple[int, ...], int], Turns] = {}

    def add(
        self,
        rows: Sequence[Rows],
        batches: Sequence[Batch],
        coefficients: Sequence[Tensor],
        dropping: Dropping | None,
        spreads: Mapping[Grid | None, Tensor | None],
        documents: Documents,
    ) -> None:
        """Give each micro-batch its views. All data ranks call it, with as many micro-batches each.

        spreads: by grid, which positions of a row are here; None: all.
        """
        seeds = None if dropping is None else dropping.seeds
        counts, told = self._told(batches, coefficients, seeds)
        length = batches[0].tokens.shape[1]
        for number, each in enumerate(rows):
            each.turns = self._turn(tuple(column[number] for column in counts), length)
            views = {}
            for grid in self.grids:
                mine, spread = self._mine(told[number], grid), spreads[grid]
                masks = None
                if dropping is not None:
                    masks = dropping.masks_of(mine[:, SEED, 0].contiguous(), length, spread)
                plan = documents(grid, mine[:, SEGMENT], masks)
                here = mine if spread is None else mine[:, :, spread]
                if grid != self.ends:
                    views[grid] = View(here[:, POSITION], plan)
                    continue
                factors = here[:, COEFFICIENT].contiguous().view(torch.float64)
                views[grid] = View(
                    here[:, POSITION],
                    plan,
                    here[:, TOKEN],
                    here[:, TARGET],
                    factors.to(coefficients[number].dtype),
                )
            each.views = views

    def _mine(self, told: Tensor, grid: Grid) -> Tensor:
        """Of all rows of a micro-batch [R, k, T], those that this rank has under a grid; a row of padding
        where it has none, which counts for nothing."""
        place = self.world.mesh.at(grid).place
        bounds = [0, *accumulate(evenly(len(told), grid))]
        data = place["dp"] * grid.fsdp + place["fsdp"]
        mine = told[bounds[data] : bounds[data + 1]]
        if len(mine):
            return mine
        empty = torch.zeros_like(told[:1])
        empty[:, SEGMENT] = -1
        return empty

    def _told(
        self,
        batches: Sequence[Batch],
        coefficients: Sequence[Tensor],
        seeds: Sequence[Sequence[int]] | None,
    ) -> tuple[list[list[int]], list[Tensor]]:
        """Of each data rank, its rows of each micro-batch; and of each micro-batch all rows, int64 [R, k, T]:
        segments, positions, the row's seed, and for the ends more."""
        device, peers = self.world.device, self.world.data
        parts = []
        kinds = LAYERS if self.ends is None else WITH_ENDS
        for number, (batch, factors) in enumerate(zip(batches, coefficients, strict=True)):
            one = torch.zeros(len(batch.tokens), kinds, batch.tokens.shape[1], dtype=torch.int64)
            one[:, SEGMENT] = torch.from_numpy(batch.segments)
            one[:, POSITION] = torch.from_numpy(batch.positions)
            if seeds is not None:
                one[:, SEED] = torch.tensor(seeds[number], dtype=torch.int64)[:, None]
            if self.ends is not None:
                one[:, TOKEN] = torch.from_numpy(batch.tokens)
                one[:, TARGET] = torch.from_numpy(batch.targets)
                one[:, COEFFICIENT] = factors.detach().cpu().double().contiguous().view(torch.int64)
            parts.append(one)
        own = torch.tensor([len(part) for part in parts], device=device)
        mine = torch.cat(parts).to(device)
        with answering(self.world.rank, "tell others of rows"):
            counts = all_gather(own[None], 0, peers).tolist()
            every = gather_rows(mine, [sum(column) for column in counts], peers)
        by_rank = every.split([sum(column) for column in counts])
        cut = [part.split(column) for part, column in zip(by_rank, counts, strict=True)]
        return counts, [torch.cat(found) for found in zip(*cut, strict=True)]

    def _turn(self, counts: tuple[int, ...], length: int) -> Turns:
        key = counts, length
        if key not in self._turns:
            own = self.world.mesh.grid
            found: dict[Grid | None, tuple[int, ...]] = {None: counts}
            found |= {grid: evenly(sum(counts), grid) for grid in self.grids}
            self._turns[key] = Turns(
                {g: seats(g or own, rows, length, sequence=self.sequence) for g, rows in found.items()},
                self.stage,
                self.world.device,
            )
        return self._turns[key]
