"""A decoder's parts and messages timed on all ranks at once: what `shunter.plan.profile` holds.

Messages stand between products here, as they do in a layer: a rank that has slept wakes late, and one that
was busy lets the others wait, which calls in a row do not show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.measure import measure_parts
from shunter.parallel.mesh import ProcessGroups
from shunter.parallel.wires import Effort as PairEffort
from shunter.parallel.wires import measure_pair
from shunter.record.spread import quick
from shunter.train.config import TrainConfig
from shunter.train.optim import Optimizers

SIZES = tuple(4**n << 12 for n in range(8))  # 4 KiB to 64 MiB of a whole tensor
STACK = 4  # layers that are timed one after the other
BETWEEN = 1e-3  # seconds of the products before a message, about


@dataclass(frozen=True)
class Effort:
    """budget: seconds of each part and size. repeats: of each message. most: seconds of a part or a message
    beyond which no larger one is timed."""

    budget: float = 1.5
    repeats: int = 25
    most: float = 1.0


QUICK = Effort(0.1, 9, 0.25)


def cut(spec: DecoderSpec, degree: int) -> DecoderSpec:
    """What one of `degree` tensor ranks has of each layer and of both ends."""
    return spec.model_copy(
        update={
            "num_heads": spec.num_heads // degree,
            "num_kv_heads": max(1, spec.num_kv_heads // degree),
            "ffn_dim": -(-spec.ffn_dim // degree),
            "vocab_size": -(-spec.vocab_size // degree),
        }
    )


def measure_model(
    spec: DecoderSpec,
    row: int,
    rows: Sequence[int],
    precision: str,
    optimizer: str,
    device: torch.device,
    effort: Effort,
    say: Callable[[str], None],
    groups: ProcessGroups,
) -> dict[str, Any]:
    """layer, embedding, head: by tensor degree; messages; update. All ranks call it and have the answer.

    rows: of micro-batches, rising. Raises nothing of its own; memory as of one layer, the ends, and the
    largest micro-batch.
    """
    world = dist.get_world_size()
    degrees = [
        n for n in range(1, world + 1) if world % n == 0 and spec.num_heads % n == 0
    ]  # of key heads, ranks may have the same one
    parts: dict[str, dict[int, Any]] = {"layer": {}, "embedding": {}, "head": {}}
    for degree in degrees:
        for name in parts:
            parts[name][degree] = {way: {"sizes": [], "seconds": []} for way in ("forward", "backward")}
        for count in rows:
            dist.barrier()
            mine = measure_parts(
                cut(spec, degree), row, count, device, precision, budget=effort.budget, layers=STACK, of=quick
            )
            pairs = [getattr(mine, name) for name in parts]
            found = _mean([seconds for each in pairs for seconds in (each.forward, each.backward)], device)
            for (name, way), seconds in zip(
                [(name, way) for name in parts for way in ("forward", "backward")], found, strict=True
            ):
                parts[name][degree][way]["sizes"].append(count)
                parts[name][degree][way]["seconds"].append(seconds)
            if max(found) > effort.most:
                say(f"micro-batches of more than {count} rows left out: they take over {effort.most:g} s")
                break
        layer = parts["layer"][degree]
        say(
            f"a layer on {degree} tensor rank{'s' * (degree > 1)}: "
            + ", ".join(
                f"{size} rows {1e3 * (ahead + behind):.1f} ms"
                for size, ahead, behind in zip(
                    layer["forward"]["sizes"], layer["forward"]["seconds"], layer["backward"]["seconds"],
                    strict=True,
                )
            )
        )  # fmt: skip
    return {
        **parts,
        "messages": _messages(device, effort, say, groups),
        "update": _update(spec, optimizer, device, effort, say),
    }


def _mean(values: Sequence[float], device: torch.device) -> list[float]:
    """Over the ranks: all of them wait for each other many times a step."""
    told = torch.tensor(values, dtype=torch.float32, device=device)
    dist.all_reduce(told)
    return (told / dist.get_world_size()).tolist()


def _messages(
    device: torch.device, effort: Effort, say: Callable[[str], None], made: ProcessGroups
) -> dict[str, dict[int, Any]]:
    """kind -> ranks -> sizes and seconds."""
    world = dist.get_world_size()
    found: dict[str, dict[int, Any]] = {"gather": {}, "scatter": {}, "sum": {}, "hop": {}}
    if world == 1:
        return found
    for ranks in sorted({world, *(n for n in range(2, world) if world % n == 0)}):
        # All ranks are at work in groups, as they are in a layout.
        groups = [made.get(range(at, at + ranks)) for at in range(0, world, ranks)]
        group = groups[dist.get_rank() // ranks]
        for kind in ("gather", "scatter", "sum"):
            sizes: list[int] = []
            seconds: list[float] = []
            for size in SIZES:
                dist.barrier()
                (took,) = _mean([_between(kind, size, ranks, group, device, effort)], device)
                sizes.append(size // (4 * ranks) * 4 * ranks)
                seconds.append(took)
                if took > effort.most / 4:
                    break
            found[kind][ranks] = {"sizes": sizes, "seconds": seconds}
            say(f"{kind} of {ranks}: {1e6 * seconds[0]:.0f} us, then "
                f"{sizes[-1] / seconds[-1] / 1e6:.0f} MB/s")  # fmt: skip
    pair = measure_pair(0, 1, device, PairEffort(20, 5, 0.05))
    told = torch.zeros(2, dtype=torch.float64, device=device)
    if pair is not None:
        told = told.new_tensor([pair[0, 1].latency.value, pair[0, 1].bandwidth.value])
    dist.broadcast(told, 0)
    latency, bandwidth = told.tolist()
    long = 1 << 24
    found["hop"][2] = {"sizes": [4, long], "seconds": [latency, latency + long / bandwidth]}
    return found


def _between(kind: str, size: int, ranks: int, group: Any, device: torch.device, effort: Effort) -> float:
    """Seconds that a message adds to the products around it, with the copies that its callers make: of what
    was gathered, of what is to be scattered, and there and back of what is summed in one piece."""
    whole = torch.zeros(size // (4 * ranks) * ranks, device=device)
    part = torch.zeros(len(whole) // ranks, device=device)
    other = torch.zeros_like(whole)
    calls: dict[str, Callable[[], Any]] = {
        "gather": lambda: (dist.all_gather_single(whole, part, group=group), other.copy_(whole)),
        "scatter": lambda: (other.copy_(whole), dist.reduce_scatter_single(part, other, group=group)),
        "sum": lambda: (other.copy_(whole), dist.all_reduce(other, group=group), whole.copy_(other)),
    }
    side = 2048 if device.type == "cuda" else 256
    a = torch.randn(side, side, device=device)
    count = max(1, round(BETWEEN / max(_timed(lambda: a @ a, 20, device) / 20, 1e-7)))

    def products() -> None:
        for _ in range(count):
            torch.mm(a, a)

    def both() -> None:
        products()
        calls[kind]()

    both()
    alone, together = [], []
    for _ in range(effort.repeats):
        together.append(_timed(both, 1, device))
        alone.append(_timed(products, 1, device))
    # A step is made of many, so what they take on average counts, waking late included.
    return max(_usual(together) - _usual(alone), 1e-7)


def _usual(seconds: Sequence[float]) -> float:
    """The mean without the longest tenth, which is others' work on the machine."""
    kept = sorted(seconds)[: max(1, round(0.9 * len(seconds)))]
    return sum(kept) / len(kept)


def _update(
    spec: DecoderSpec, optimizer: str, device: torch.device, effort: Effort, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """By parameters, seconds in which gradients are clipped, weights changed, and gradients given up."""
    sizes, seconds = [], []
    for layers in (1, 3):
        with torch.random.fork_rng(), torch.device(device):
            decoder = Decoder(spec.model_copy(update={"num_layers": layers}))
        config = TrainConfig(steps=1, batch_rows=1, optimizer=optimizer, lr=1e-6)  # type: ignore[arg-type]
        optimizers = Optimizers(decoder, config)
        dist.barrier()
        took = [_once(decoder, optimizers, device) for _ in range(3 + effort.repeats // 4)]
        sizes.append(float(sum(each.numel() for each in decoder.parameters())))
        seconds += _mean([quick(took[1:])], device)
    say(f"the optimizer: {1e9 * seconds[-1] / sizes[-1]:.1f} ns a parameter")
    return {"sizes": sizes, "seconds": seconds}


def _once(decoder: Decoder, optimizers: Optimizers, device: torch.device) -> float:
    """Seconds of one update by gradients of zeros."""
    for each in decoder.parameters():
        each.grad = torch.zeros_like(each)
    begin = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    optimizers.step(1e-6)
    optimizers.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _timed(call: Callable[[], Any], count: int, device: torch.device) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
