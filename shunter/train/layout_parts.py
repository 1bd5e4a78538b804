"""What the ranks of a layout hold of a model, from its specification alone. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod

from shunter.layout.grid import DENSE, Grid
from shunter.layout.holding import Holding
from shunter.layout.zero import Kept, share_out
from shunter.models.sharding import end_holdings, holdings, layer_of, shapes
from shunter.models.spec import DecoderSpec
from shunter.parallel.cut import cut_layers, decoder_costs
from shunter.schedule.order import Order
from shunter.schedule.program import Program
from shunter.train.config import Parallel
from shunter.train.layout_check import check_layout

SHARDING = ("fsdp", "cp")  # as `shunter.parallel.part` shards
FULL, HALF = 4, 2  # bytes of a float32 and of a bfloat16


@dataclass(frozen=True)
class Plan:
    """A model, its layout and a step, with what follows from them.

    parallel: settled. rows: of a micro-batch on each data rank, the most. wide, narrow: bytes of an element
    of what stays in float32 and of what products make (bfloat16, with precision bf16).
    """

    spec: DecoderSpec
    parallel: Parallel
    order: Order
    program: Program
    bounds: list[int]
    row_length: int
    rows: int
    wide: int
    narrow: int

    @classmethod
    def make(
        cls,
        spec: DecoderSpec,
        parallel: Parallel,
        row_length: int,
        batch_rows: int,
        *,
        bf16: bool = False,
        wide: int = FULL,
    ) -> Plan:
        """Raises ShunterError for a layout that cannot be. parallel: settled."""
        costs, first, head = decoder_costs(spec, row_length)
        order = parallel.order(head * parallel.pp / sum(costs))
        check_layout(spec, parallel, order, row_length)
        if isinstance(parallel.cut, list):
            bounds = [0, *parallel.cut, spec.num_layers]
        else:
            if order.collectives:
                head = 0.0
            bounds = cut_layers(costs, order.placement, first, head)
        program = parallel.lowered(order, sharded=parallel.sharded and parallel.pp > 1)
        rows = ceil(ceil(batch_rows / parallel.data) / order.microbatches)
        return cls(spec, parallel, order, program, bounds, row_length, rows, wide, HALF if bf16 else wide)

    @cached_property
    def grid(self) -> Grid:
        return self.parallel.grid

    @cached_property
    def own_grids(self) -> dict[int, Grid]:
        """Of layers with degrees of their own."""
        return self.parallel.own_grids()

    def at(self, layer: int) -> Plan:
        """As a layer sees it: with its degrees alone, and the rows of a micro-batch that it has then."""
        return self._under(self.own_grids.get(layer))

    @property
    def of_ends(self) -> Plan:
        """The same as embedding, last norm and head see it."""
        return self._under(self.parallel.ends_grid)

    def _under(self, grid: Grid | None) -> Plan:
        if grid is None:
            return self
        if grid not in self._seen:
            degrees = {axis: grid.degree(axis) for axis in (*DENSE, "ep", "etp")}
            parallel = self.parallel.model_copy(update={**degrees, "layers": None, "ends": None})
            rows = ceil(self.rows * self.parallel.data / parallel.data)
            self._seen[grid] = replace(self, parallel=parallel, rows=rows)
        return self._seen[grid]

    @cached_property
    def _seen(self) -> dict[Grid, Plan]:
        return {}

    def rank(self, place: Mapping[str, int]) -> int:
        """The rank at `place`."""
        return self.grid.rank(**{axis: place[axis] for axis in DENSE})

    @property
    def tokens(self) -> int:
        """Of a micro-batch on a rank, as matrix products see them."""
        return self.rows * self.row_length // self.parallel.cp

    @property
    def own_tokens(self) -> int:
        """Of them, those that a rank has between the products."""
        return self.tokens // (self.parallel.tp if self.parallel.sequence else 1)

    @cached_property
    def by_name(self) -> dict[str, tuple[int, ...]]:
        return dict(shapes(self.spec))

    def stages(self, place: Mapping[str, int]) -> list[int]:
        """Numbers of the stages of the rank at `place`."""
        return [stage for stage, rank in enumerate(self.order.placement) if rank == place["pp"]]

    def owned(self, stage: int) -> list[str]:
        """Names of what a stage computes with, in the model's order. Not to be changed."""
        if stage not in self._owned:
            self._owned[stage] = self._own(stage)
        return self._owned[stage]

    @cached_property
    def _owned(self) -> dict[int, list[str]]:
        return {}

    def _own(self, stage: int) -> list[str]:
        begin, end = self.bounds[stage], self.bounds[stage + 1]
        first, last = stage == 0, stage == self.order.stages - 1
        ends = not self.order.collectives
        found = []
        for name in self.by_name:
            parts = name.split(".")
            if parts[0] == "layers":
                mine = begin <= int(parts[1]) < end
            elif parts[0] == "embed":
                mine = ends and (first or (last and self.spec.tied))
            else:
                mine = last and (ends or parts[0] == "norm")
            if mine:
                found.append(name)
        return found

    @cached_property
    def _cuts(self) -> dict[tuple[int, ...], dict[str, Holding]]:
        """Of places that differ in rows alone, which have the same: hundreds of ranks are told in seconds."""
        return {}

    def cut(self, place: Mapping[str, int]) -> dict[str, Holding]:
        """What the rank at `place` computes with, by name, before it is sharded. Not to be changed."""
        axes = ("pp", "tp", "ep", "etp")
        key = tuple(place[axis] for axis in axes)
        for grid in self.parallel.others:
            key += tuple(grid.coordinates(self.rank(place))[axis] for axis in axes)
        if key not in self._cuts:
            self._cuts[key] = self._cut(place)
        return self._cuts[key]

    def _cut(self, place: Mapping[str, int]) -> dict[str, Holding]:
        mine = {name for stage in self.stages(place) for name in self.owned(stage)}
        every = holdings(self.spec, self.grid, place, sequence=self.parallel.sequence)
        sequence = self.parallel.sequence
        for grid in dict.fromkeys(self.own_grids.values()):
            there = grid.coordinates(self.rank(place))
            for name, holding in holdings(self.spec, grid, there, sequence=sequence).items():
                if self.own_grids.get(layer_of(name)) == grid:  # type: ignore[arg-type]
                    every[name] = replace(holding, grid=grid)
        if (ends := self.parallel.ends_grid) is not None:
            there = ends.coordinates(self.rank(place))
            for name, holding in end_holdings(self.spec, ends, there, sequence=sequence).items():
                every[name] = replace(holding, grid=ends)
        found = {name: every[name] for name in every if name in mine}
        if self.order.collectives:
            share = -(-self.spec.vocab_size // self.grid.pp)
            begin = min(place["pp"] * share, self.spec.vocab_size)
            rows = begin, min(begin + share, self.spec.vocab_size)
            for name in ("embed.weight", "head.weight"):
                if name in every:
                    found[name] = Holding(every[name].piece.take(0, rows), every[name].partial)
        return found

    def held(self, place: Mapping[str, int]) -> dict[str, Holding]:
        """What the rank at `place` keeps."""
        found = dict(self.cut(place))
        if not self.parallel.sharded:
            return found
        rank = self.rank(place)
        for name, holding in found.items():
            grid = holding.grid or self.grid
            if grid.fsdp == 1:
                continue
            there = grid.coordinates(rank)
            if ".experts." not in name:
                axes = tuple(axis for axis in SHARDING if grid.degree(axis) > 1)
                index = there["fsdp"] * grid.cp + there["cp"]
                found[name] = holding.sharded(index, grid.fsdp * grid.cp, axes)
            elif grid.edp > 1:
                found[name] = holding.sharded(there["edp"], grid.edp, ("edp",))
        return found

    def shared(self, place: Mapping[str, int], optimizer: str) -> dict[str, Kept]:
        """What the rank at `place` keeps the optimizer's state of, among that which has copies (zero: 1)."""
        if not self.parallel.zero:
            return {}
        rank = self.rank(place)
        trained = {name: held for name, held in self.held(place).items() if not name.endswith("router.bias")}
        whole = muon_takes if optimizer == "muon" else lambda name, shape: False
        return share_out(trained, self.grid, rank, whole)

    def units(self, place: Mapping[str, int], stage: int) -> list[Unit]:
        """What `fully_shard` gathers at once: experts, layers, and the rest of the stage, as it is nested.

        With `gather: bf16` a layer's norms and router are apart from its matrices.
        """
        narrow = self.parallel.gather == "bf16"
        cut = self.cut(place)
        found: dict[str, list[tuple[int, ...]]] = {}
        for name in self.owned(stage):
            if name.endswith("router.bias"):  # no parameter
                continue
            layer = name.split(".")[1] if name.startswith("layers.") else ""
            key = f"{layer} experts" if ".experts." in name else layer
            if narrow and layer and name.endswith(("norm.weight", "router.weight")):
                key = f"{layer} whole"
            found.setdefault(key, []).append(cut[name].piece.local_shape)
        units = []
        for key, part in found.items():
            experts = key.endswith("experts")
            number = int(key.split()[0]) if key else None
            grid = (self.of_ends if number is None else self.at(number)).grid
            if grid.fsdp == 1:
                continue
            if (size := grid.edp if experts else grid.fsdp * grid.cp) > 1:
                share = sum(-(-shape[0] // size) * prod(shape[1:]) for shape in part)
                thin = narrow and key and not key.endswith("whole")
                units.append(Unit(number, size, share, HALF if thin else self.wide))
        return units


def muon_takes(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon, where it is chosen, takes a parameter."""
    return len(shape) >= 2 and "layers" in name.split(".")


@dataclass(frozen=True)
class Unit:
    """layer: its number; None: what stays gathered between forward and backward. share: elements on each of
    `size` ranks; bytes: of one as it is gathered."""

    layer: int | None
    size: int
    share: int
    bytes: int
