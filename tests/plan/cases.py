"""Published runs as the cost model takes them, and a cluster like the one of torchtitan's tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.config import yaml
from shunter.layout.grid import Grid
from shunter.plan.calibrate import Run
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import FUSED, PRACTICES, Coefficients, Practice
from shunter.plan.presets import PRESETS, preset
from shunter.plan.transformer import Shape

HERE = Path(__file__).parent
TITAN = PRACTICES["torchtitan"]
# float8: each operand is read for its largest value, read again and written; half of the tensor messages go
# behind products with async TP. Both are counted, not fitted.
HOW: dict[str, Practice] = {
    "eager": TITAN,
    "compiled": replace(TITAN, elementwise=FUSED),
    "float8": replace(TITAN, elementwise=FUSED, products="fp8", casts=5.0),
    "async": replace(TITAN, elementwise=FUSED, products="fp8", casts=5.0, overlap_tensor=0.5),
}


def published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(HERE / "published.yaml").data[name]
    return found


def grand_teton(nodes: int) -> Cluster:
    """Nodes of torchtitan's tables: H100 of 96 GB and 2.4 TB/s at 500 W, 400 Gb/s a GPU. Rates by class of
    shape: measured on an H100 of 700 W, so that what is fitted is the share that is left at 500 W."""
    rates = files.find("8xh100").description.devices["h100"].flops
    device = {
        "memory": 101e9,
        "memory_bandwidth": 2.4e12,
        "flops": {name: rates[name].model_dump() for name in ("bf16", "fp8")},
    }
    return Cluster.of(
        Description.model_validate(
            {
                "name": "grand-teton",
                "devices": {"h100-96": device},
                "links": {
                    "nvlink": {"latency": 5e-6, "bandwidth": 450e9},
                    "rdma": {"latency": 8e-6, "bandwidth": 50e9},
                },
                "nodes": {
                    "host": {
                        "count": nodes,
                        "device": "h100-96",
                        "devices": 8,
                        "inside": "nvlink",
                        "between": "rdma",
                        "nics": 8,
                    }
                },
            }
        )
    )


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


def titan_runs() -> tuple[list[Run], list[Run]]:
    """Those to fit, and the others."""
    fitted, held = [], []
    for row in published("torchtitan")["rows"]:
        fabric = Fabric.of(grand_teton(row["gpus"] // 8))
        question = Question(
            PRESETS[row["model"]], fabric, row["batch"], row["row"], HOW[row["how"]], Coefficients()
        )
        grid = Grid(**{name: row.get(name, 1) for name in ("pp", "dp", "fsdp", "cp", "tp")})
        choice = Choices.one(
            grid, row["microbatch"], row.get("schedule", "1f1b"), row.get("chunks", 1), row["recompute"]
        )
        run = Run(row["name"], question, choice, row["batch"] * row["row"] / row["gpus"] / row["rate"])
        (fitted if row.get("fit") else held).append(run)
    return fitted, held
