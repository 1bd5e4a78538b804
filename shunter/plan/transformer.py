"""Size, work and memory of a Transformer by closed formulas (arXiv 2104.04473, section 5 and appendix)."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Bytes of a weight with all that belongs to it: half precision 2, gradient 4, and in single precision the
# weight and Adam's two moments 12.
STATE = 18


@dataclass(frozen=True)
class Shape:
    """l layers of width h with `heads` heads, rows of s tokens, V words; feed-forward layers of 4 h."""

    layers: int
    hidden: int
    heads: int
    sequence: int = 2048
    vocabulary: int = 51200

    @property
    def parameters(self) -> float:
        """Weights in all: 12 l h^2 (1 + 13 / (12 h) + (V + s) / (12 l h))."""
        layers, hidden = self.layers, self.hidden
        more = 13 / (12 * hidden) + (self.vocabulary + self.sequence) / (12 * layers * hidden)
        return 12 * layers * hidden**2 * (1 + more)

    def flops(self, batch: int) -> float:
        """Of one step over `batch` rows with all layers recomputed: 96 B s l h^2 (1 + s/6h + V/16lh)."""
        layers, hidden, sequence = self.layers, self.hidden, self.sequence
        more = sequence / (6 * hidden) + self.vocabulary / (16 * layers * hidden)
        return 96 * batch * sequence * layers * hidden**2 * (1 + more)

    def boundary_bytes(self, rows: int) -> float:
        """What passes between two layers, in half precision."""
        return 2.0 * rows * self.sequence * self.hidden

    def inside_bytes(self, rows: int, tensor: int) -> float:
        """What one layer holds for its backward, spread over `tensor` ranks but for what each needs whole:
        s b h (10 + 24 / t) + 5 a s^2 b / t (arXiv 2205.05198, section 4.1)."""
        sequence, hidden = self.sequence, self.hidden
        whole = sequence * rows * hidden * (10 + 24 / tensor)
        return whole + 5 * self.heads * sequence**2 * rows / tensor


def training_seconds(tokens: float, parameters: float, devices: int, flops: float) -> float:
    """About 8 T P / (n X): tokens, weights, devices, FLOP/s that each reaches; recomputation included."""
    return 8 * tokens * parameters / (devices * flops)


def device_bytes(
    shape: Shape, *, tensor: int, pipeline: int, rows: int, chunks: int, microbatches: int
) -> float:
    """Most that a device holds: weights with their state, inputs of the layers for each micro-batch in
    flight, and the inside of the one layer that is computed again.

    The first rank has most in flight: p micro-batches, interleaved (2 (p - 1) + (v - 1) p + 1) / v.
    """
    state = STATE * shape.parameters / (tensor * pipeline)
    ahead = pipeline if chunks == 1 else (2 * (pipeline - 1) + (chunks - 1) * pipeline + 1) / chunks
    flight = min(ahead, microbatches)
    inputs = flight * shape.layers / pipeline * shape.boundary_bytes(rows)
    return state + inputs + shape.inside_bytes(rows, tensor)


def best_checkpoints(layers: int, input_bytes: float, inside_bytes: float) -> float:
    """How many inputs a stage of `layers` layers keeps so that it holds least: c that minimises
    c A_in + (l / c) A_mid, which is sqrt(l A_mid / A_in)."""
    return math.sqrt(layers * inside_bytes / input_bytes)


def bubble(pipeline: int, microbatches: int, chunks: int = 1) -> float:
    """Idle over ideal time: (p - 1) / (v m)."""
    return (pipeline - 1) / (chunks * microbatches)
