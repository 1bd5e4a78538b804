"""Where a decoder is cut into stages: by bounds, by operations, or by times that rank 0 measures."""

from __future__ import annotations

from shunter.models.decoder import Decoder
from shunter.parallel.cut import cut_layers, decoder_costs
from shunter.parallel.lost import answering
from shunter.parallel.measure import measured_costs
from shunter.parallel.told import told_by_all
from shunter.schedule.order import Order
from shunter.train.config import Parallel
from shunter.train.layout_check import check_cut
from shunter.train.world import World

Costs3 = tuple[list[float], float, float]  # of each layer, of the embedding, of the head


def cut_decoder(
    decoder: Decoder, parallel: Parallel, order: Order, row_length: int, measured: Costs3 | None = None
) -> list[int]:
    """Bounds of the stages. measured: seconds of each layer, of the embedding and of the head, for
    `cut: measured`. Raises ShunterError for bounds that are not layers in order."""
    layers = decoder.spec.num_layers
    if isinstance(parallel.cut, list):
        check_cut(parallel.cut, layers)
        return [0, *parallel.cut, layers]
    costs, first, last = measured or decoder_costs(decoder.spec, row_length)
    if order.collectives:
        first = last = 0.0  # every rank has its part
    return cut_layers(costs, order.placement, first, last)


def tell_costs(decoder: Decoder, row_length: int, rows: int, world: World, precision: str) -> Costs3:
    """What rank 0 measures, on all ranks: each would measure otherwise, and cut otherwise."""
    found = None
    if world.rank == 0:
        found = measured_costs(decoder.spec, row_length, rows, world.device, precision)
    with answering(world.rank, "hear what layers cost"):
        costs, first, last = told_by_all(found, world.mesh.everyone, world.device)[0]
    return costs, first, last
