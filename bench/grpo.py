"""GRPO against trl's GRPOTrainer: same model, prompts, group, answers a step, length, rate; fp32 on the CPU.

From a model's folder to the last step, as each is called: 16 prompts of 8 answers a step, at most 8 or 40
tokens each, rewarded where a digit stands in them, or by how many different digits do. By the first, some
groups are worth the same throughout, of which ours computes no gradient; by the second hardly any is. Answers
are drawn, so the sides do not learn alike; that losses of equal batches are equal is a test
(tests/post/test_trl.py). trl recomputes no activations; neither has a reference model here (beta 0, kl 0).
Ours keeps its journal and checkpoint. Setting up is in the time of both: 40 steps make little of it.

Run it with a Python that has trl: `python -m bench.grpo` keeps the result; `--tiny` is a trial.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.measure import alternate, machine, rounded, save
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
CASES = {"short": (8, "any"), "long": (40, "any"), "long, graded": (40, "each")}
REWARDS = {
    "any": [{"kind": "format", "pattern": r".*\d.*"}],
    "each": [{"kind": "format", "name": f"has{d}", "pattern": f".*{d}.*", "weight": 0.1} for d in range(10)],
}
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


def make(folder: Path) -> None:
    """A random model with a tokenizer, and conversations beside it."""
    texts = [f"{q} {a}" for q, a in questions()]
    tokenizers.save(tokenizers.train(texts, 400), folder / "tokenizer", max_length=64)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    spec = DecoderSpec(
        vocab_size=tokenizer.vocab_size, max_positions=64, dim=128, num_layers=4, num_heads=4, num_kv_heads=4,
        head_dim=32, ffn_dim=320, qk_norm=True, tied=True, family="qwen3",
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


def ours(folder: Path, steps: int, new: int, worth: str = "any") -> None:
    """The job `rl`."""
    how, train = {"threads": torch.get_num_threads()}, {"steps": steps, "lr": RATE}
    practise(folder, new, how, train=train, rewards=REWARDS[worth])


def flat(folder: Path, steps: int, new: int, worth: str) -> float:
    """The share of groups that are worth the same throughout, in the mean of a run's steps."""
    how = {"threads": torch.get_num_threads(), "log_every": 1}
    found = practise(folder, new, how, train={"steps": steps, "lr": RATE}, rewards=REWARDS[worth])
    shares = [line["values"]["rl/flat_groups"] for line in found if line["event"] == "metrics"]
    return sum(shares) / len(shares)


def theirs(folder: Path, steps: int, new: int, worth: str = "any") -> None:
    """trl's trainer."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": [{"role": "user", "content": asked}]} for asked, _ in questions()]
    with tempfile.TemporaryDirectory() as out:
        settings = GRPOConfig(
            output_dir=out, per_device_train_batch_size=GROUP * PROMPTS, num_generations=GROUP,
            max_completion_length=new, max_steps=steps, learning_rate=RATE, beta=0.0,
            loss_type="grpo", gradient_checkpointing=False,
            lr_scheduler_type="constant", use_cpu=True, bf16=False, report_to=[],
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
    tiny = "--tiny" in sys.argv
    steps, rounds, limit = (3, 2, 0.0) if tiny else (40, 4, 180.0)
    samples = steps * GROUP * PROMPTS
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        for name, case in CASES.items():
            found = alternate(
                lambda case=case: ours(folder, steps, *case),  # type: ignore[misc]
                lambda case=case: theirs(folder, steps, *case),  # type: ignore[misc]
                rounds, 1, width=0.1, limit=limit,
            )  # fmt: skip
            share = flat(folder, steps, *case)
            middle = sorted(found["a"])[len(found["a"]) // 2]
            print(
                f"{name}: {samples / middle:.0f} samples/s, {found['ratio_median']:.2f}x trl "
                f"[{found['ratio_low']:.2f}, {found['ratio_high']:.2f}], "
                f"CPU seconds {found['cpu_ratio_median']:.2f}x; {share:.0%} of the groups flat",
                flush=True,
            )
            both = {"a": rounded(found["a"]), "b": rounded(found["b"])}
            cases[name] = {**found, **both, "new_tokens": case[0], "reward": case[1], "flat": round(share, 3)}
            if not tiny:  # each case takes minutes
                kept = {"goal": GOAL, "samples": samples, "cases": cases, "machine": machine()}
                print(save("grpo", kept), flush=True)


if __name__ == "__main__":
    main()
