"""Published runs, and those of this program on a GPU, as the cost model takes them."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shunter.cluster import files
from shunter.config import yaml
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec, ExpertsSpec
from shunter.plan.calibrate import Run
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import FUSED_GELU, PRACTICES, Coefficients, practice
from shunter.plan.presets import PRESETS, gpt, preset
from shunter.plan.transformer import Shape

HERE = Path(__file__).parent
HOW = {
    "eager": "torchtitan",
    "compiled": "torchtitan+compiled",
    "float8": "torchtitan+compiled+float8",
    "async": "torchtitan+compiled+float8+async",
}


def published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(HERE / "published.yaml").data[name]
    return found


def megatron_runs() -> tuple[list[Run], list[Run]]:
    """Those to fit, and the others. Seconds: from TFLOP/s by the paper's formula."""
    fitted, held = [], []
    for row in published("megatron")["rows"]:
        spec = preset(row["model"])
        fabric = Fabric.of(files.find(f"{row['gpus'] // 8}x8xa100-80"))
        question = Question(spec, fabric, row["batch"], 2048, PRACTICES["megatron-2021"], Coefficients())
        grid = Grid(pp=row["pp"], tp=row["tp"], dp=row["gpus"] // row["pp"] // row["tp"])
        schedule = "interleaved-1f1b" if row["chunks"] > 1 else "1f1b"
        choice = Choices.one(grid, row["microbatch"], schedule, row["chunks"], "layer")
        flops = Shape(spec.num_layers, spec.dim, spec.num_heads).flops(row["batch"])
        run = Run(row["model"], question, choice, flops / row["gpus"] / row["tflops"] / 1e12)
        (fitted if row.get("fit") else held).append(run)
    return fitted, held


def titan_runs(table: str = "torchtitan", machine: str = "grand-teton") -> tuple[list[Run], list[Run]]:
    """Those to fit, and the others."""
    fitted, held = [], []
    for row in published(table)["rows"]:
        fabric = Fabric.of(files.find(f"{row['gpus'] // 8}x{machine}"))
        practised = practice(HOW[row["how"]])
        question = Question(
            PRESETS[row["model"]], fabric, row["batch"], row["row"], practised, Coefficients()
        )
        grid = Grid(**{name: row.get(name, 1) for name in ("pp", "dp", "fsdp", "cp", "tp")})
        choice = Choices.one(
            grid, row["microbatch"], row.get("schedule", "1f1b"), row.get("chunks", 1), row["recompute"]
        )
        run = Run(row["name"], question, choice, row["batch"] * row["row"] / row["gpus"] / row["rate"])
        (fitted if row.get("fit") else held).append(run)
    return fitted, held


def foundry_runs(kind: str) -> list[Run]:
    """Steps of another program on these devices, to which nothing is fitted."""
    told, found = published("foundry"), []
    practised = replace(PRACTICES["torchtitan"], elementwise=FUSED_GELU)
    for row in told[kind]:
        layers, dim = told["models"][row["model"]]
        fabric = Fabric.of(files.find(f"{row['gpus'] // 8}x8x{kind}"))
        spec = gpt(layers, dim, dim // 128, words=50368)
        question = Question(spec, fabric, row["batch"], 2048, practised, Coefficients())
        again = "layer" if row["again"] else "none"
        choice = Choices.one(Grid(fsdp=row["gpus"]), row["microbatch"], recompute=again)
        seconds = row["batch"] * 2048 / row["gpus"] / row["rate"]
        found.append(Run(f"{row['model']} on {row['gpus']}", question, choice, seconds))
    return found


@dataclass(frozen=True)
class Own:
    """A step of this program that bench/train_step.py measured on one H100. bytes: the most that torch's
    allocator had given out at once."""

    run: Run
    bytes: float


def _spec(dim: int, layers: int, ffn: int, experts: ExpertsSpec | None = None) -> DecoderSpec:
    """As bench/train_step.py has them."""
    return DecoderSpec(
        vocab_size=32768, max_positions=2048, dim=dim, num_layers=layers, num_heads=dim // 64,
        num_kv_heads=dim // 64, head_dim=64, ffn_dim=ffn, tied=experts is None, experts=experts,
        family="llama" if experts is None else "mixtral",
    )  # fmt: skip


OWN_MODELS = {
    "0.5B": _spec(1280, 24, 3456),
    "1.5B": _spec(2048, 28, 5504),
    "8x0.1B": _spec(1024, 12, 2816, ExpertsSpec(num_experts=8, per_token=2, ffn_dim=3584)),
}
OWN_FITTED = ("0.5B-eager-bf16-rows", "8x0.1B-eager-bf16-rows")  # to `products` and `grouped`


def own_runs() -> dict[str, Own]:
    """By name of the case. Seconds: the median of the rounds."""
    path = HERE.parents[1] / "bench" / "results" / "train_step_cuda.json"
    fabric, found = Fabric.of(files.find("1xh100")), {}
    for name, case in json.loads(path.read_text(encoding="utf-8"))["cases"].items():
        model, mode, *_ = name.split("-")
        rows, row = case["batch"]
        practised = practice("shunter+compiled" if mode == "compiled" else "shunter")
        question = Question(OWN_MODELS[model], fabric, rows, row, practised, Coefficients())
        assert question.spec.num_parameters == case["parameters"]
        seconds = statistics.median(case["seconds"]["ours"])
        run = Run(name, question, Choices.one(Grid(), rows), seconds)
        found[name] = Own(run, case["peak_mib"]["ours"] * 2**20)
    return found
