"""What a decoder's parts take on this device: a layer, the embedding and the head, forward and backward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from shunter.models.decoder import Decoder
from shunter.models.head import linear_cross_entropy
from shunter.models.segments import SegmentPlan
from shunter.models.spec import DecoderSpec

BUDGET = 0.5  # seconds of each part, about
LEAST, MOST = 3, 20  # times that a part is timed


@dataclass(frozen=True)
class Seconds:
    """Medians of a part over one micro-batch."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Parts:
    """A decoder's: any of its layers, which are alike, its embedding, and its head with the last norm."""

    layer: Seconds
    embedding: Seconds
    head: Seconds


def measure_parts(
    spec: DecoderSpec,
    row_length: int,
    rows: int,
    device: torch.device,
    precision: str = "fp32",
    *,
    budget: float = BUDGET,
    layers: int = 1,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> Parts:
    """Time the parts on a micro-batch of `rows` rows of `row_length` tokens, each of one document.

    precision: fp32, or bf16 for matrix products in it. The head's forward holds most of its gradient's work
    (see `models.head`), so only the sum of its two times means something. Random numbers that others draw
    are not disturbed. layers: that are timed one after the other, so that a layer does not find its weights
    where it has just left them. of: what is told of a part's seconds.

    Memory: of these layers, the embedding and the head.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(0)
        decoder = Decoder(spec.model_copy(update={"num_layers": layers}))
        shape = (rows, row_length)
        tokens = torch.randint(spec.vocab_size, shape)
        positions = torch.arange(row_length).expand(shape)
        plan = SegmentPlan.build(torch.zeros(shape, dtype=torch.int64))
        hidden = torch.randn(*shape, spec.dim)
        grad = torch.randn(*shape, spec.dim)
        factors = torch.full((tokens.numel(),), -1 / tokens.numel())
    rope, mask = decoder.geometry(positions, plan, hidden.dtype)

    def embedding() -> Tensor:
        found: Tensor = decoder.embed(tokens)
        return found

    def layer() -> Tensor:
        found: Tensor = hidden.requires_grad_()
        for each in decoder.layers:
            found = each(found, rope, plan, mask, None)
        return found

    def head() -> Tensor:
        x = decoder.norm(hidden.requires_grad_())
        loss, _ = linear_cross_entropy(
            x.flatten(0, 1), decoder.head_weight, tokens.flatten(), factors, into_grad=True
        )
        return loss

    cast = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    with cast:
        whole, *ends = (_timed(part, grad, device, budget, of) for part in (layer, embedding, head))
    return Parts(Seconds(whole.forward / layers, whole.backward / layers), *ends)


def measured_costs(
    spec: DecoderSpec, row_length: int, rows: int, device: torch.device, precision: str = "fp32"
) -> tuple[list[float], float, float]:
    """Seconds of each layer, of the embedding and of the head, forward and backward together: what
    `cut_layers` takes. Ranks measure differently, so one of them has to tell the others."""
    parts = measure_parts(spec, row_length, rows, device, precision)
    return [parts.layer.both] * spec.num_layers, parts.embedding.both, parts.head.both


def _timed(
    part: Callable[[], Tensor],
    grad: Tensor,
    device: torch.device,
    budget: float,
    of: Callable[[Sequence[float]], float],
) -> Seconds:
    """After once to get warm: the first call allocates, and chooses kernels."""
    forward: list[float] = []
    backward: list[float] = []
    begin = time.perf_counter()
    while len(forward) <= LEAST or (len(forward) <= MOST and time.perf_counter() - begin < budget):
        marks: list[float] = [_now(device)]
        made = part()
        marks.append(_now(device))
        torch.autograd.backward(made, grad.to(made.dtype) if made.ndim else None)
        marks.append(_now(device))
        forward.append(marks[1] - marks[0])
        backward.append(marks[2] - marks[1])
    return Seconds(of(forward[1:]), of(backward[1:]))


def _now(device: torch.device) -> float:
    """The host's clock, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
