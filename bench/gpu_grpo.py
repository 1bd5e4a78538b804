"""Reinforcement on one GPU, phase by phase: writing, reading by the reference, learning.

A random model answers random prompts, 16 of 16 to 256 tokens, 8 answers each of 256 tokens; what it writes is
noise, but takes the time that sense would. Weights are float32 and learn under bf16's autocast; the generator
is a bf16 copy that is filled anew after the update, as engines of their own hold one. The gap is between what
the generator says of its tokens and what the trainer says of them, in nats a token.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.post.batch import Sample, micro_batches
from shunter.post.config import PolicyConfig, PostTrain
from shunter.post.course import Pupil
from shunter.post.judged import judge, settings
from shunter.post.policy import Policy
from shunter.post.preferences import of_each
from shunter.post.step import Scorer

GROUP = 8


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
        return made


def grpo(device: torch.device, tiny: bool) -> dict[str, Any]:
    """The second of two steps: the first one warms up."""
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
    train = PostTrain(steps=10, lr=1e-5, optimizer="adamw", precision="bf16")
    policy, config = Pupil(model, train, device), PolicyConfig()
    with torch.no_grad():
        reference, generator = (copy.deepcopy(model).to(torch.bfloat16) for _ in range(2))
    sampling = SamplingConfig(max_new_tokens=new, batch=prompts * GROUP, temperature=1.0)
    engine = RolloutEngine(
        generator, sampling, tokens=prompts * GROUP * (longest + new + 16), tempered=True
    )  # fmt: skip
    objective = Policy(settings(config, new))
    draw = random.Random(0)
    told: dict[str, Any] = {}
    for step in range(2):
        phases = Phases(device)
        asked = [
            [draw.randrange(vocabulary) for _ in range(draw.randint(longest // 16, longest))]
            for _ in range(prompts)
        ]
        for prompt in asked:
            for _ in range(GROUP):
                engine.submit(prompt)
        written = prompts * GROUP * new
        done: list[Rollout] = phases.take("write", written, engine.run)
        texts = [Sample([*d.prompt, *d.ids], [False] * len(d.prompt) + [True] * len(d.ids)) for d in done]
        total = sum(len(text.ids) for text in texts)
        scorer = Scorer(reference, device, "bf16")
        far = phases.take("reference", total, lambda: of_each(scorer, texts, 16384))  # noqa: B023
        rewards = [float(one.ids[0] % 2) for one in done]
        groups = [i // GROUP for i in range(len(done))]
        samples = judge(config, done, rewards, groups, far, None)
        batches = micro_batches([[sample] for sample in samples], 16384)
        result = phases.take(
            "learn", total, lambda: policy.learn(objective, batches, step)  # noqa: B023
        )  # fmt: skip

        def refill() -> None:
            with torch.no_grad():
                for mine, new_one in zip(generator.parameters(), model.parameters(), strict=True):
                    mine.copy_(new_one)
            engine.new_weights(step + 1)  # noqa: B023

        phases.take("refill", spec.num_parameters, refill)
        told = {
            "parameters": spec.num_parameters,
            "answers": len(done),
            "written": written,
            "read": total,
            "phases": phases.found,
            "gap_mean": result.told["gap"],
            "gap_max": result.told["max/gap"],
            "seconds": sum(phase["seconds"] for phase in phases.found.values()),
            "finite": bool(np.isfinite(result.loss)),
        }
    return told
