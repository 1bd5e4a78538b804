"""Reinforcement on one GPU, phase by phase: writing, reading by the reference, learning.

A random model answers random prompts, 16 of 16 to 256 tokens, 8 answers each of 256 tokens; what it writes is
noise, but takes the time that sense would. Weights are float32, learn under bf16's autocast, and write with
copies in bf16, as in the job `rl`. The gap is between what the generator says of its tokens and what the
trainer says of them, in nats a token.

Writing is measured three ways: with steps that are replayed (CUDA graphs), with each kernel launched anew,
and by `generate` of transformers, in bf16. Learning too: each answer behind a prompt of its own, answers that
share a prompt behind copies of its keys and values, and under a mask of their row. Each number is of the
second of two turns, of which the first warms up.
"""

from __future__ import annotations

import copy
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.forks import Forks
from shunter.models.hf import save_model
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.post.batch import Sample, by_prompt, grouped, micro_batches
from shunter.post.config import PolicyConfig, PostTrain
from shunter.post.course import Pupil
from shunter.post.judged import judge, settings
from shunter.post.policy import Policy
from shunter.post.preferences import of_each
from shunter.post.step import Scorer

GROUP = 8
TOKENS = 16384  # of a micro-batch
REPEATS = 20


class Phases:
    """Seconds and peak memory of each phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: dict[str, dict[str, float]] = {}

    def take(self, name: str, tokens: int, work: Callable[[], Any]) -> Any:
        """Do `work`, which passes over `tokens` tokens, and note what it took."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = time.perf_counter()
        made = work()
        if cuda:
            torch.cuda.synchronize(self.device)
        took = time.perf_counter() - begin
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if cuda else 0.0
        self.found[name] = {"seconds": took, "tokens_per_second": tokens / took, "peak_mib": peak}
        print(f"{name}: {took:.3g} s, {tokens / took:,.0f} tokens/s, {peak:,.0f} MiB", file=sys.stderr)
        return made


def grpo(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Seconds, tokens a second and peak memory of each phase and arm."""
    dim, layers, vocabulary = (64, 2, 512) if tiny else (1280, 24, 32768)
    prompts, longest, new = (4, 16, 8) if tiny else (16, 256, 256)
    spec = DecoderSpec(
        vocab_size=vocabulary, dim=dim, num_layers=layers, num_heads=dim // 64, num_kv_heads=dim // 64,
        head_dim=64, ffn_dim=dim * 27 // 10 // 32 * 32, max_positions=2 * (longest + new), tied=True,
    )  # fmt: skip
    with torch.device(device):
        model = Decoder(spec)
    init_weights(model, 0)
    with torch.no_grad():  # new weights say the same of every word: no gap would be seen
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    # No arm moves the weights of the next one: its gap would be that of another policy.
    policy = Pupil(model, PostTrain(steps=10, lr=1e-12, optimizer="adamw", precision="bf16"), device)
    config = PolicyConfig()
    with torch.no_grad():
        reference = Scorer(copy.deepcopy(model).to(torch.bfloat16), device, "bf16")
    sampling = SamplingConfig(max_new_tokens=new, batch=prompts * GROUP, temperature=1.0)
    writers = {name: _writer(model, sampling, longest + new + 16) for name in ("replayed", "launched")}
    writers["launched"].recorder = None
    other = _theirs(model, device)
    objective, draw = Policy(settings(config, new)), random.Random(0)
    told: dict[str, Any] = {}
    for step in range(2):
        phases = Phases(device)
        asked = [
            [draw.randrange(vocabulary) for _ in range(draw.randint(longest // 16, longest))]
            for _ in range(prompts)
        ]
        written = prompts * GROUP * new
        done: list[Rollout] = []
        for name, engine in writers.items():
            if name == "launched" and step == 0:
                continue  # it takes long, and the other one has warmed up what it uses
            for prompt in asked:
                for _ in range(GROUP):
                    engine.submit(prompt)
            done = phases.take(f"write, {name}", written, engine.run)
        if step == 0:
            other(asked, 4)
        else:
            phases.take("write, transformers", written, lambda: other(asked, new))  # noqa: B023
        texts = [Sample([*d.prompt, *d.ids], [False] * len(d.prompt) + [True] * len(d.ids)) for d in done]
        total = sum(len(text.ids) for text in texts)
        far = phases.take("reference", total, lambda: of_each(reference, texts, TOKENS))  # noqa: B023
        rewards = [float(one.ids[0] % 2) for one in done]
        samples = judge(config, done, rewards, [i // GROUP for i in range(len(done))], far, None)
        own = micro_batches([[each] for each in samples], TOKENS)
        shared = grouped(by_prompt(samples, TOKENS, device="cuda"), TOKENS)
        behind, masked = partial(Forks.build, always=True), lambda segments: None
        arms = {"own prompts": own, "copies of the prompt": shared, "a mask": shared}
        for name, batches in arms.items():
            with patch.object(Forks, "build", masked if name == "a mask" else behind):
                result = phases.take(
                    f"learn, {name}", total, lambda: policy.learn(objective, batches, step)  # noqa: B023
                )  # fmt: skip
            told.setdefault("gap", {})[name] = [result.told["gap"], result.told["max/gap"]]
        for engine in writers.values():
            engine.new_weights(step + 1)
    return {
        "parameters": spec.num_parameters,
        "answers": len(done),
        "written": written,
        "read": total,
        "phases": phases.found,
        "gap_mean_max": told["gap"],
        "step_milliseconds": {name: _milliseconds(engine) for name, engine in writers.items()},
    }


def _writer(model: Decoder, sampling: SamplingConfig, room: int) -> RolloutEngine:
    tokens = sampling.batch * room
    return RolloutEngine(model, sampling, tokens=tokens, tempered=True, rounded=torch.bfloat16)


def _theirs(model: Decoder, device: torch.device) -> Callable[[Sequence[Sequence[int]], int], object]:
    """`generate` of transformers with the same weights in bf16: prompts are filled up on the left."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()

    def write(asked: Sequence[Sequence[int]], new: int) -> object:
        longest = max(map(len, asked))
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in asked for _ in range(GROUP)]
        seen = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked for _ in range(GROUP)]
        given = {name: torch.tensor(each, device=device) for name, each in (("a", rows), ("b", seen))}
        return other.generate(
            given["a"], attention_mask=given["b"], max_new_tokens=new, min_new_tokens=new, do_sample=True,
            top_k=0, pad_token_id=0,
        )  # fmt: skip

    return write


def _milliseconds(engine: RolloutEngine) -> float:
    """Of the largest recorded step, by the device; 0 where none is."""
    if engine._replays is None or not engine.model.embed.weight.is_cuda:
        return 0.0
    recorded = engine._replays.made[max(engine._replays.made)]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPEATS):
        recorded.replay()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / REPEATS
