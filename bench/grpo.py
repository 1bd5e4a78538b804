"""GRPO against trl's GRPOTrainer: same model, prompts, group, answers a step, length, rate; fp32 on the CPU.

From a model's folder to the last step, as each is called: 16 prompts of 8 answers a step, at most 8 or 40
tokens each, rewarded where a digit stands in them, or by how many different digits do. By the first, some
groups are worth the same throughout, of which ours computes no gradient; by the second hardly any is. Answers
are drawn, so the sides do not learn alike; that losses of equal batches are equal is a test
(tests/post/test_trl.py). trl recomputes no activations; neither has a reference model here (beta 0, kl 0).
Ours keeps its journal and checkpoint. Setting up is in the time of both: 40 steps make little of it.

Run it with a Python that has trl: `python -m bench.grpo` keeps the result, `python -m bench.grpo short` that
of one case, and the others' as they are: each tells where and when. `--tiny` is a trial. With
`--device cuda` it is a model of half a billion parameters on a GPU, in bf16's autocast on both sides, with
answers of at most 64 tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.measure import RESULTS, alternate, machine, rounded, save
from shunter.data import tokenizer as tokenizers
from shunter.data.tokenizer import Tokenizer
from shunter.jobs import rl
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.recipe.artefact import Artefact, Manifest
from shunter.recipe.job import JobContext
from shunter.record import events
from shunter.record.events import EventLog

GOAL = 1.5
GROUP, PROMPTS, RATE = 8, 16, 1e-4
# New tokens, and what is rewarded.
CASES = {"short": (8, "any"), "long": (40, "any"), "graded": (40, "each")}
REWARDS = {
    "any": [{"kind": "format", "pattern": r".*\d.*"}],
    "each": [{"kind": "format", "name": f"has{d}", "pattern": f".*{d}.*", "weight": 0.1} for d in range(10)],
}
GPU_CASES = {"0.5B": (64, "each")}
DIGIT = re.compile(r"\d")


class Still:
    """Nobody asks for anything."""

    def stop_requested(self) -> bool:
        return False

    def take_save_request(self) -> bool:
        return False


def questions() -> list[tuple[str, str]]:
    """What is asked, and the answer."""
    return [(f"What is {a} plus {b}?", str(a + b)) for a in range(8) for b in range(8)]


def make(folder: Path, large: bool = False) -> None:
    """A random model with a tokenizer, and conversations beside it."""
    texts = [f"{q} {a}" for q, a in questions()]
    tokenizers.save(tokenizers.train(texts, 400), folder / "tokenizer", max_length=64)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    dim, layers, heads, room = (1280, 24, 20, 512) if large else (128, 4, 4, 64)
    spec = DecoderSpec(
        vocab_size=tokenizer.vocab_size, max_positions=room, dim=dim, num_layers=layers, num_heads=heads,
        num_kv_heads=heads, head_dim=dim // heads, ffn_dim=3456 if large else 320, qk_norm=True,
        tied=not large, family="qwen3",
    )  # fmt: skip
    model = Decoder(spec)
    init_weights(model, 0)
    save_model(
        model, folder / "model", tokenizer_folder=folder / "tokenizer", eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokenizer.pad,
    )  # fmt: skip
    lines = []
    for number, (asked, answer) in enumerate(questions()):
        talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"id": str(number), "task": "sums", "messages": talk}) + "\n")
    (folder / "talks").mkdir()
    (folder / "talks" / "train.jsonl").write_text("".join(lines), encoding="utf-8")


def artefact(path: Path) -> Artefact:
    """A folder as an input of a job."""
    manifest = Manifest(
        name=path.name, kind="", type="", version=1, id="0" * 12, content="", what={}, how={}, inputs=[],
        metrics={}, attempts=[], files=[], created="",
    )  # fmt: skip
    return Artefact(path, manifest)


def any_digit(completions: list[Any], **more: Any) -> list[float]:
    """The reward "any", as trl wants it."""
    return [float(bool(DIGIT.search(each[0]["content"]))) for each in completions]


def each_digit(completions: list[Any], **more: Any) -> list[float]:
    """The reward "each", as trl wants it."""
    return [0.1 * len(set(DIGIT.findall(each[0]["content"]))) for each in completions]


def practise(folder: Path, new: int, how: dict[str, Any], **asked: Any) -> list[dict[str, Any]]:
    """The job `rl`, rewarded for a digit unless told otherwise, in a place of its own; the lines of its event
    log."""
    with tempfile.TemporaryDirectory() as place:
        out, log, work = (Path(place) / name for name in ("out", "log", "work"))
        for path in (out, log, work):
            path.mkdir()
        config = rl.RlConfig.model_validate(
            {
                "kind": "rl", "model": "m", "prompts": "t", "group": GROUP, "prompts_per_step": PROMPTS,
                "rewards": REWARDS["any"], "max_new_tokens": new,
                "how": {"track": []} | how, **asked,
            }
        )  # fmt: skip
        told = EventLog(log / "events.jsonl")
        inputs: dict[str, Any] = {"model": artefact(folder / "model"), "prompts": artefact(folder / "talks")}
        rl.JOB.run(JobContext("rl", config, inputs, out, log, work, folder, told, Still()))
        told.close()
        return list(events.read(log / "events.jsonl"))


def ours(folder: Path, steps: int, new: int, worth: str = "any", device: str = "cpu") -> None:
    """The job `rl`."""
    how, train = _how(device), {"steps": steps, "lr": RATE}
    practise(folder, new, how, train=train, rewards=REWARDS[worth])


def _how(device: str) -> dict[str, Any]:
    gpu = {"micro_tokens": 16384} if device == "cuda" else {}
    return {"threads": torch.get_num_threads(), "device": device, **gpu}


def watched(folder: Path, steps: int, new: int, worth: str, device: str = "cpu") -> dict[str, float]:
    """Means of a run's steps: the share of groups that are worth the same throughout, tokens of an answer,
    the gap, and seconds of each phase; the first step, which sets up, is left out."""
    how = {**_how(device), "log_every": 1}
    found = practise(folder, new, how, train={"steps": steps, "lr": RATE}, rewards=REWARDS[worth])
    told = [line["values"] for line in found if line["event"] == "metrics"][1:]
    names = ("flat_groups", "length", "gap")
    named = [f"rl/{name}" for name in names] + [name for name in told[0] if name.endswith("_seconds")]
    means = {name.rpartition("/")[2]: sum(each[name] for each in told) / len(told) for name in named}
    return {name: float(f"{mean:.4g}") for name, mean in means.items()}


def theirs(folder: Path, steps: int, new: int, worth: str = "any", device: str = "cpu") -> None:
    """trl's trainer."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    gpu = device == "cuda"
    parts = 4 if gpu else 1  # of a step, whose activations would not fit at once
    rows = [{"prompt": [{"role": "user", "content": asked}]} for asked, _ in questions()]
    with tempfile.TemporaryDirectory() as out:
        settings = GRPOConfig(
            output_dir=out, per_device_train_batch_size=GROUP * PROMPTS // parts,
            gradient_accumulation_steps=parts, num_generations=GROUP,
            max_completion_length=new, max_steps=steps, learning_rate=RATE, beta=0.0,
            loss_type="grpo", gradient_checkpointing=False,
            lr_scheduler_type="constant", use_cpu=not gpu, bf16=gpu, report_to=[],
            save_strategy="no", logging_steps=1000, disable_tqdm=True, temperature=1.0,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            reward_funcs=[any_digit if worth == "any" else each_digit],
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
        )
        trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.grpo")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="a trial, which is not kept")
    parser.add_argument("cases", nargs="*", help="those to measure; default: all")
    chosen = parser.parse_args()
    device, gpu = chosen.device, chosen.device == "cuda"
    name, known = ("grpo_cuda", GPU_CASES) if gpu else ("grpo", CASES)
    if unknown := set(chosen.cases) - set(known):
        parser.error(f"no case {sorted(unknown)[0]!r}: there are {', '.join(known)}")
    steps, rounds, limit = (3, 2, 0.0) if chosen.tiny else (5, 2, 0.0) if gpu else (40, 4, 180.0)
    samples = steps * GROUP * PROMPTS
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.is_file() else {}
    cases: dict[str, Any] = {case: before[case] for case in known if case in before}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, large=gpu)
        for label in chosen.cases or known:
            case = known[label]
            found = alternate(
                partial(ours, folder, steps, *case, device),
                partial(theirs, folder, steps, *case, device),
                rounds, 1, width=None if gpu else 0.1, limit=limit,
            )  # fmt: skip
            means = watched(folder, steps, *case, device)
            middle = sorted(found["a"])[len(found["a"]) // 2]
            print(
                f"{label}: {samples / middle:.0f} samples/s, {found['ratio_median']:.2f}x trl "
                f"[{found['ratio_low']:.2f}, {found['ratio_high']:.2f}], "
                f"CPU seconds {found['cpu_ratio_median']:.2f}x; {means['flat_groups']:.0%} of groups flat",
                flush=True,
            )
            both = {"a": rounded(found["a"]), "b": rounded(found["b"])}
            told = machine() | ({"gpu": torch.cuda.get_device_name()} if gpu else {})
            asked = {"new_tokens": case[0], "reward": case[1], "steps": means, "samples": samples}
            cases[label] = {**found, **both, **asked, "machine": told}
            if not chosen.tiny:  # each case takes minutes
                print(save(name, {"goal": GOAL, "cases": cases}), flush=True)


if __name__ == "__main__":
    main()
