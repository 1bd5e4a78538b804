"""A synthetic store with the documented formats: a finished quickstart, small and fast to write."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from shunter.recipe.artefact import Artefact, FileRecord, InputRecord, Manifest
from shunter.record.events import EventLog

ENVIRONMENT = {"python": "3.11.9", "torch": "2.13.0", "platform": "Linux x86_64", "cpu_count": 2}


@dataclass
class Made:
    """A store folder with its artefacts by job name."""

    path: Path
    artefacts: dict[str, Artefact]


def publish(
    store, name, kind, type_, files, *, inputs=(), made=None, metrics=None, seconds=1.0, what=None, **more
):
    """Write an artefact folder with a manifest, as the store publishes it."""
    identity = hashlib.sha256(name.encode()).hexdigest()
    folder = store / "artefacts" / f"{name}-{identity[:12]}"
    (folder / "log").mkdir(parents=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    records = [FileRecord(path=p, bytes=len(c), sha256="0" * 64) for p, c in files.items()]
    manifest = Manifest(
        name=name,
        kind=kind,
        type=type_,
        version=1,
        id=identity,
        content=identity[::-1],
        what={"kind": kind, "seed": 0, **(what or {})},
        how={"log_every": 10, **more.get("how", {})},
        inputs=[
            InputRecord(field="of", name=up, id=made[up].manifest.id, content=made[up].manifest.content)
            for up in inputs
        ],
        metrics=metrics or {},
        attempts=[
            {
                "begin": 1.79e9,
                "seconds": seconds,
                "how": {},
                "code": {"commit": "abc123", "dirty": False},
                "environment": ENVIRONMENT,
                "outcome": "done",
                "peak_bytes": more.get("peak", 300 << 20),
            }
        ],
        files=records,
        created="2026-02-03T14:05:00+00:00",
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    artefact = Artefact(folder, manifest)
    if made is not None:
        made[name] = artefact
    return artefact


def log_curves(log, *, steps=400, start=8.3, end=3.1, speed=21000.0, resumed_at=None):
    """Metrics as a training job logs them."""
    events = EventLog(log / "events.jsonl")
    for step in range(1, steps + 1):
        if step == resumed_at:
            events.close()
            events = EventLog(log / "events.jsonl", attempt=2)
        wobble = math.sin(step * 12.9898) * 0.12
        loss = end + (start - end) * math.exp(-step / 60) + wobble
        events.metrics(
            step,
            **{
                "train/loss": loss,
                "train/grad_norm": 0.6 + 3 * math.exp(-step / 20) + abs(wobble),
                "train/lr": 3e-3 * min(step / 40, 0.5 * (1 + math.cos(math.pi * step / steps))),
                "train/tokens_per_second": speed * (1 + wobble / 4),
                "train/tokens": step * 2048,
                "train/memory_mib": 812.0,
            },
        )
        if step % 50 == 0:
            events.metrics(step, **{"valid/loss": loss + 0.1, "valid/bits_per_byte": (loss + 0.1) / 2.0})
    events.close()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


SCORES = {
    "models": {
        model: {
            "tasks": {
                "heldout": {
                    "metric": "bits_per_byte",
                    "value": bpb,
                    "low": bpb - 0.02,
                    "high": bpb + 0.02,
                    "unit": "bits/byte",
                    "n": 61,
                    "baseline": {"name": "xz -9", "value": 2.31},
                },
                "arithmetic": {
                    "metric": "exact_match",
                    "value": right,
                    "low": max(0, right - 0.04),
                    "high": right + 0.04,
                    "unit": "fraction",
                    "n": 300,
                    "baseline": {"name": "most frequent answer", "value": 0.031},
                },
            }
        }
        for model, bpb, right in (("base", 1.702, 0.01), ("tuned", 1.748, 0.437))
    },
    "comparisons": [
        {
            "task": "arithmetic",
            "metric": "exact_match",
            "a": "base",
            "b": "tuned",
            "difference": 0.427,
            "low": 0.371,
            "high": 0.482,
            "unit": "fraction",
            "n": 300,
        },
        {
            "task": "heldout",
            "metric": "bits_per_byte",
            "a": "base",
            "b": "tuned",
            "difference": 0.046,
            "low": -0.004,
            "high": 0.093,
            "unit": "bits/byte",
            "n": 61,
        },
    ],
}


def corpus_files():
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    def split(count):
        sink = io.BytesIO()
        text = ["Fellow citizens, größer. " * 40] * count
        pq.write_table(pa.table({"id": [f"a:{i}" for i in range(count)], "text": text}), sink)
        return sink.getvalue()

    return {
        "train/00000.parquet": split(180),
        "heldout/00000.parquet": split(20),
        "dropped.jsonl": lines(
            [{"id": f"b:{i}", "reason": "duplicate" if i % 3 else "too short"} for i in range(31)]
        ),
        "problems.jsonl": lines([{"file": "a.txt", "line": 7, "problem": "not UTF-8"}]),
        "summary.json": json.dumps({"documents": 200}),
    }


def sample_rows(models=("base", "tuned")):
    for model in models:
        for index in range(3):
            prompt = f"<|user|>\nWhat is {index + 3} * 7?<|end|>\n<|assistant|>\n"
            answer = str((index + 3) * 7) if model == "tuned" else "the people of the United States, and of"
            yield {
                "model": model,
                "task": "arithmetic",
                "id": index,
                "prompt": prompt,
                "response": answer,
                "target": str((index + 3) * 7),
                "score": float(model == "tuned"),
            }


def build(path, *, samples=None, scores=SCORES):
    """A whole finished quickstart."""
    made: dict[str, Artefact] = {}
    publish(
        path,
        "corpus",
        "curate",
        "corpus",
        corpus_files(),
        made=made,
        seconds=6.2,
        peak=210 << 20,
        metrics={"documents": 200, "bytes": 204_000, "seconds": 6.2},
    )
    publish(
        path,
        "questions",
        "conversations",
        "conversations",
        {
            "train.jsonl": lines(
                [
                    {"id": str(i), "task": "arithmetic" if i % 4 else "address", "messages": []}
                    for i in range(80)
                ]
            ),
            "heldout.jsonl": lines([{"id": str(i), "task": "arithmetic", "messages": []} for i in range(8)]),
        },
        inputs=["corpus"],
        made=made,
        seconds=2.0,
    )
    publish(
        path,
        "tokenizer",
        "tokenizer",
        "tokenizer",
        {"tokenizer.json": "{}" * 9000},
        inputs=["corpus"],
        made=made,
        seconds=3.4,
        metrics={"vocab_size": 4096, "bytes_per_token": 3.92},
    )
    base = publish(
        path,
        "base",
        "pretrain",
        "model",
        {"model.safetensors": b"0" * 200_000},
        inputs=["corpus", "tokenizer"],
        made=made,
        seconds=171.0,
        peak=1400 << 20,
        metrics={"tokens": 819200},
        what={"train": {"lr": 0.003, "steps": 400}},
    )
    log_curves(base.path / "log", resumed_at=240)
    tuned = publish(
        path,
        "tuned",
        "sft",
        "model",
        {"model.safetensors": b"0" * 200_000},
        inputs=["base", "questions", "tokenizer"],
        made=made,
        what={"train": {"steps": 40}},
        seconds=64.0,
        peak=1100 << 20,
    )
    log_curves(tuned.path / "log", steps=40, start=3.2, end=0.7)
    rows = list(sample_rows()) if samples is None else samples
    publish(
        path,
        "scores",
        "evaluate",
        "scores",
        {"scores.json": json.dumps(scores), "samples.jsonl": lines(rows), "items.jsonl": lines(rows)},
        inputs=["base", "tuned", "corpus", "questions"],
        made=made,
        seconds=31.0,
    )
    return Made(path, made)


@pytest.fixture
def store(tmp_path):
    return build(tmp_path / "store")


@pytest.fixture(name="make_store")
def make_store_fixture():
    return build


@pytest.fixture(name="write_curves")
def write_curves_fixture():
    return log_curves


@pytest.fixture(name="publish")
def publish_fixture():
    return publish
