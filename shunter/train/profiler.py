"""A model's parts and messages measured by the ranks of this machine, and kept: `shunter.plan.profile`."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.models.spec import DecoderSpec
from shunter.plan.probe import Told, cache, fingerprint
from shunter.plan.profile import FORMAT, VERSION, Profile
from shunter.recipe.attempt import environment_record

LOADS = ("shunter.train.profiling",)  # by the process that ranks are forked from


def profile(
    spec: DecoderSpec,
    row: int,
    rows: int,
    *,
    precision: str = "fp32",
    optimizer: str = "adamw",
    ranks: int | None = None,
    threads: int | None = None,
    quick: bool = False,
    again: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Profile, Path]:
    """What the model takes on this machine, and its file in the cache, measured now if there is none.

    row: tokens of a row. rows: of the largest micro-batch. precision: fp32 or bf16, as products are computed.
    ranks, quick, again: as `plan.probe.probe`. threads: of each rank. Raises ShunterError for a model with
    experts, whose times hang on where tokens go.
    """
    if spec.experts is not None:
        raise ShunterError(
            "models with experts are not profiled: what they take hangs on where tokens go",
            mend="Plan without --profile.",
        )
    record = environment_record()
    count = ranks or len(record["devices"]) or 2
    threads = threads or max(1, record["cores"] // count)
    request = {
        "spec": spec.model_dump(mode="json"),
        "row": row,
        "rows": sizes(rows),
        "precision": precision,
        "optimizer": optimizer,
        "quick": quick,
    }
    key = json.dumps([request, threads, VERSION], sort_keys=True) + fingerprint(count, quick)
    path = cache() / f"profile-{hashlib.sha256(key.encode()).hexdigest()[:12]}.yaml"
    if path.exists() and not again:
        say(f"measured before: {path}")
        return Profile.load(path), path
    with tempfile.TemporaryDirectory() as folder:
        told = Told(Path(folder) / "told", say)
        asked = {**request, "told": str(told.path)}
        found = elastic.launch(
            "shunter.train.profiler", asked, count, Path(folder) / "ranks", threads=threads, poll=told.poll
        )
    made = Profile.of(
        {
            "format": FORMAT, "version": VERSION, "spec": request["spec"], "row": row, "products": precision,
            "ranks": count, **found, "machine": f"{count} x {_device(record)}",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
    )  # fmt: skip
    made.save(path)
    return made, path


def sizes(rows: int) -> list[int]:
    """Rows of the micro-batches that are timed: powers of two and the largest."""
    return sorted({*(2**n for n in range(rows.bit_length())), rows})


def _device(record: dict[str, Any]) -> str:
    return str(record["devices"][0] if record["devices"] else record["cpu"])


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """One rank of the measurement."""
    import torch
    import torch.distributed as dist

    from shunter.parallel.mesh import ProcessGroups
    from shunter.train.profiling import QUICK, Effort, measure_model

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=600),
    )

    def say(line: str) -> None:
        if rank == 0:
            with open(request["told"], "a", encoding="utf-8") as file:
                file.write(line + "\n")

    return measure_model(
        DecoderSpec.model_validate(request["spec"]),
        request["row"],
        request["rows"],
        request["precision"],
        request["optimizer"],
        device,
        QUICK if request["quick"] else Effort(),
        say,
        ProcessGroups(),
    )
