"""Seconds that a save keeps a training, beside plain torch's distributed checkpoint of the same state.

beside  `save_later` by `dcp.async_save`: until the call returns. Its writing goes on unseen, and is waited
        for before the next side begins.
now     `save` by `dcp.save`: until all is on the disk. Ours also takes a SHA-256 of every byte, and publishes
        by a rename; torch's syncs its files too, and has no digests.

The state is that of a decoder with AdamW: weights and two moments. Both sides write to the same file system,
by turns, the order turned round each time, the folder removed in between. GB are 10^9 bytes.

`python -m bench.checkpoint` measures 1.5 GB, `--gb 0.05 --rounds 2` tries the code. A result is kept where
others left the machine alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from bench.measure import Others, interval, machine, rounded, save
from shunter.train.checkpoint.lifecycle import Checkpointer

GOALS = {"beside": 1.1, "now": 1.5}  # ours by torch's, at most
CALM = 0.1  # largest share of the machine that others may use while a kept result is measured
DIM, VOCABULARY = 1024, 32768

Side = Callable[[Path], tuple[float, Callable[[], Any]]]  # seconds until it returned; what waits for the rest


def state(size: float) -> dict[str, Any]:
    """Weights of layers of width 1024, and their moments: about `size` bytes in float32."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (VOCABULARY, DIM)}
    layer = {"qkv": (3 * DIM, DIM), "out": (DIM, DIM), "gate_up": (6 * DIM, DIM), "down": (DIM, 3 * DIM)}
    taken, number = VOCABULARY * DIM, 0
    if size < 12 * taken:
        shapes, taken = {}, 0
    while 12 * taken < size:
        shapes |= {f"layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        shapes[f"layers.{number}.norm.weight"] = (DIM,)
        taken, number = taken + 13 * DIM * DIM + DIM, number + 1
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    moments = {
        name: {"exp_avg": torch.randn(weight.shape), "exp_avg_sq": torch.rand(weight.shape)}
        for name, weight in weights.items()
    }
    return {"model": weights, "optimizer": moments}


def sides(values: dict[str, Any], places: tuple[Path, Path]) -> dict[str, tuple[Side, Side]]:
    """Ours and torch's, of each kind."""
    keepers = [Checkpointer(place, keep=1) for place in places]

    def ours_beside(folder: Path) -> tuple[float, Callable[[], Any]]:
        keepers[0].save_later(1, values, {})
        return keepers[0].blocked, keepers[0].wait

    def ours_now(folder: Path) -> tuple[float, Callable[[], Any]]:
        keepers[1].save(1, values, {})
        return keepers[1].blocked, lambda: None

    def torch_beside(folder: Path) -> tuple[float, Callable[[], Any]]:
        begin = time.perf_counter()
        future: Any = dcp_async_save(values, checkpoint_id=folder, no_dist=True)
        return time.perf_counter() - begin, future.result

    def torch_now(folder: Path) -> tuple[float, Callable[[], Any]]:
        begin = time.perf_counter()
        dcp_save(values, checkpoint_id=folder, no_dist=True)
        return time.perf_counter() - begin, lambda: None

    return {"beside": (ours_beside, torch_beside), "now": (ours_now, torch_now)}


def measure(size: float, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds a GB of each side, and the ratio of rounds."""
    values = state(size)
    gb = 12e-9 * sum(weight.numel() for weight in values["model"].values())
    places = folder / "beside", folder / "now"
    found: dict[str, Any] = {"gb": gb}
    for kind, (ours, theirs) in sides(values, places).items():
        seconds: dict[str, list[float]] = {"ours": [], "torch": []}
        for turn in range(rounds + 1):
            order = [("ours", ours), ("torch", theirs)]
            for name, side in order if turn % 2 else order[::-1]:
                blocked, rest = side(folder / "torch")
                rest()
                for place in places:
                    for step in place.glob("step-*"):
                        shutil.rmtree(step)
                shutil.rmtree(folder / "torch", ignore_errors=True)
                os.sync()
                if turn:  # the first meets memory that nobody has touched
                    seconds[name].append(blocked / gb)
        pairs = [a / b for a, b in zip(seconds["ours"], seconds["torch"], strict=True)]
        middle, low, high = interval(pairs)
        found[kind] = {
            "ours_by_torch": middle, "interval": [low, high], "goal": GOALS[kind],
            **{f"{name}_seconds_per_gb": rounded(each) for name, each in seconds.items()},
        }  # fmt: skip
    return found


def main() -> int:
    """Measure; print, and keep what was measured on a machine left alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.5, help="size of the state")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the file system to measure; default: a temporary one")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.distributed is")
    watch = Others()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        found = measure(asked.gb * 1e9, asked.rounds, Path(folder))
    for kind, goal in GOALS.items():
        one = found[kind]
        ours, theirs = (statistics.median(one[f"{name}_seconds_per_gb"]) for name in ("ours", "torch"))
        low, high = one["interval"]
        print(
            f"{kind:<8}{ours:.3f} s/GB, torch {theirs:.3f} s/GB: {one['ours_by_torch']:.2f} "
            f"[{low:.2f}, {high:.2f}], goal at most {goal}"
        )
    others = watch.share()
    if others > CALM or asked.gb < 1:
        print(f"Others used {others:.0%} of the machine; {found['gb']:.2f} GB: not kept.")
        return 0
    what = "seconds a GB that a save keeps a training, by those of torch's distributed checkpoint"
    save("checkpoint", {"what": what, "others": others, **found, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
