"""Memory of `rl` beside what its account predicts, phase by phase, on a CPU in float32.

For some sizes of a random model the job runs three steps in a process of its own: writing in turns, with a
cache too small for all, with the first model beside (`kl`), beside another process that writes, and under a
layout of two. Measured is the largest resident set of the process in each phase (of a layout, of rank 0's),
which holds the interpreter, torch and what the allocator keeps too; the prediction has what the process held
before there was a model, and tensors. `of tensors` is the difference of both without that.

    python -m bench.rl_memory              # keeps the result
    python -m bench.rl_memory --size small --case turns   # one; keeps nothing
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import ROOT, save

SIZES: dict[str, dict[str, Any]] = {
    "small": {"dim": 256, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 768},
    "middle": {"dim": 384, "num_layers": 6, "num_heads": 6, "num_kv_heads": 6, "ffn_dim": 1024},
    "large": {"dim": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 1536},
}
CASES: dict[str, dict[str, Any]] = {
    "turns": {},
    "cache": {"how": {"at_once": 16, "cache": 1024, "block": 16}},
    "first": {"policy": {"kl": 0.05}},
    "beside": {"staleness": 1},
    "layout": {"how": {"parallel": {"fsdp": 2}}},
}
NEW, GROUP, PROMPTS = 48, 8, 8


def make(folder: Path, size: str) -> None:
    """A random model of 2,000 words or so, and questions of about forty tokens."""
    import torch

    from shunter.data import tokenizer as tokenizers
    from shunter.data.tokenizer import Tokenizer
    from shunter.models.decoder import Decoder
    from shunter.models.hf import save_model
    from shunter.models.init import init_weights
    from shunter.models.spec import DecoderSpec

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=5)) for _ in range(3000)]
    tokenizers.save(tokenizers.train(words * 2, 2048), folder / "tokenizer", max_length=256)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    spec = DecoderSpec(
        vocab_size=tokenizer.vocab_size, max_positions=256, head_dim=64, tied=True, qk_norm=True,
        family="qwen3", **SIZES[size],
    )  # fmt: skip
    model = Decoder(spec)
    init_weights(model, 0)
    with torch.no_grad():  # or all answers would be alike
        for weight in model.layers.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
    stops = tokenizer.stop_ids
    save_model(model, folder / "model", tokenizer_folder=folder / "tokenizer", eos_token_id=stops)
    (folder / "talks").mkdir()
    lines = []
    for number in range(32):
        talk = [
            {"role": "user", "content": " ".join(draw.sample(words, 16))},
            {"role": "assistant", "content": "yes"},
        ]
        lines.append(json.dumps({"id": str(number), "task": "t", "messages": talk}) + "\n")
    (folder / "talks" / "train.jsonl").write_text("".join(lines), encoding="utf-8")


def account(size: str, case: str) -> dict[str, Any]:
    """The account of a run, and parameters; in this process."""
    from bench.grpo import Still, artefact
    from shunter.jobs import rl
    from shunter.recipe.job import JobContext
    from shunter.record.events import EventLog

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, size)
        out, log, work = (folder / name for name in ("out", "log", "work"))
        for path in (out, log, work):
            path.mkdir()
        asked = dict(CASES[case])
        how = {"track": [], "threads": 1, "device": "cpu", "at_once": 32, **asked.pop("how", {})}
        config = rl.RlConfig.model_validate(
            {
                "kind": "rl", "model": "m", "prompts": "t", "group": GROUP, "prompts_per_step": PROMPTS,
                "rewards": [{"kind": "format", "pattern": ".*[a-h]"}], "max_new_tokens": NEW,
                "train": {"steps": 3, "lr": 1e-4, "precision": "fp32"}, "how": how, **asked,
            }
        )  # fmt: skip
        inputs: dict[str, Any] = {"model": artefact(folder / "model"), "prompts": artefact(folder / "talks")}
        told = EventLog(log / "events.jsonl")
        metrics = rl.JOB.run(JobContext("rl", config, inputs, out, log, work, folder, told, Still()))
        told.close()
        return {"parameters": metrics["parameters"], **metrics["account"]}


def shown(found: dict[str, Any]) -> dict[str, Any]:
    """Bytes of phases, predicted and measured, and the ratio of what is more than at the beginning."""
    if "unpredicted" in found:
        raise RuntimeError(found["unpredicted"])
    began = found["began_memory_bytes"]
    rows = {each["phase"]: (each["plan_memory_bytes"], each["memory_bytes"]) for each in found["phases"]}
    if "writer_memory_bytes" in found:
        rows["writer"] = found["plan_writer_memory_bytes"], found["writer_memory_bytes"]
    return {
        name: {
            "predicted": round(plan),
            "measured": round(took),
            "measured_over_predicted": round(took / plan, 3),
            "of_tensors": round((took - began) / (plan - began), 3),
        }
        for name, (plan, took) in rows.items()
        if plan and took
    }


def main() -> None:
    """Measure all, or one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--here", action="store_true", help="in this process, and shown as JSON")
    given = parser.parse_args()
    if given.here:
        found = account(given.size, given.case)
        print(json.dumps({"parameters": found["parameters"], **shown(found)}))
        return
    results: dict[str, Any] = {}
    for size in [given.size] if given.size else SIZES:
        for case in [given.case] if given.case else CASES:
            results[f"{size} {case}"] = found = apart(size, case)
            print(size, case, json.dumps(found))
    if not (given.size or given.case):
        save("rl_memory", {"what": "resident bytes of rl by phase beside the account's", "cases": results})


def apart(size: str, case: str) -> dict[str, Any]:
    """What a run in a process of its own has shown."""
    command = [sys.executable, "-m", "bench.rl_memory", "--here", "--size", size, "--case", case]
    # What is freed goes back to the system: else one phase shows what another has left.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
