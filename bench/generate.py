"""Generation against `transformers.generate`: same weights, prompts, precision and number of threads.

16 prompts of 32 tokens, 256 new ones each, no stop token, on the CPU in fp32. Both sides are called as a
user calls them, from lists of ids to lists of ids; transformers with its default cache. Ours also returns
the log-probability of each token. Before anything is timed, the greedy tokens of both
are compared, and our log-probabilities of a drawn text with one full forward pass of transformers (random
weights write the same few tokens over and over when greedy: that alone would prove little).

`python -m bench.generate` measures all; `python -m bench.generate 2M-greedy` one case. Cases not measured
keep their earlier result.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.measure import RESULTS, alternate, machine, rounded, save
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import generate
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec

BATCH, PROMPT, NEW = 16, 32, 256
# Rounds go on until the interval of the ratio is this narrow, or the time is up.
ROUNDS, WIDTH, LIMIT = 4, 0.05, 60.0
# Rounding differs between the sides; a tie that it breaks changes what follows. More is a mistake.
SAME = 0.9
# Nats between our log-probability of a token and the other side's from one full forward pass.
GAP = 1e-3


def _spec(vocab: int, dim: int, layers: int, heads: int, kv_heads: int, ffn: int) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=vocab, max_positions=512, dim=dim, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=dim // heads, ffn_dim=ffn, tied=True,
    )  # fmt: skip


SPECS = {
    "2M": _spec(4096, 160, 5, 5, 5, 432),
    "45M": _spec(16384, 512, 11, 8, 8, 1408),
    "45M-grouped": _spec(16384, 512, 12, 8, 2, 1408),
}
GOALS = {"2M": 2.0, "45M": 1.3, "45M-grouped": 1.3}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_k": 50},
}
CASES = {f"{size}-{mode}": (size, mode) for size, mode in product(SPECS, MODES)}

Write = Callable[[], list[list[int]]]


def ours(model: Decoder, prompts: list[list[int]], mode: str) -> Write:
    """Our generation of all prompts."""
    config = SamplingConfig(max_new_tokens=NEW, batch=BATCH, **MODES[mode])
    return lambda: [done.ids for done in generate(model, prompts, config)]


def load(folder: Path) -> Any:
    """transformers' model of the weights in `folder`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


@torch.no_grad()
def gap(model: Decoder, other: Any, prompts: list[list[int]]) -> float:
    """Largest difference in nats between our log-probabilities of a drawn text and `other`'s."""
    done = generate(model, prompts, SamplingConfig(max_new_tokens=NEW, batch=BATCH, temperature=1.0))
    ids = torch.tensor([prompt + one.ids for prompt, one in zip(prompts, done, strict=True)])
    scores = other(ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    expected = scores.gather(-1, ids[:, PROMPT:, None]).squeeze(-1)
    return float((expected - torch.tensor([one.logprobs for one in done])).abs().max())


def theirs(model: Any, prompts: list[list[int]], mode: str) -> Write:
    """transformers' generation."""
    drawn = {"do_sample": True, **MODES[mode]} if mode == "sampled" else {"do_sample": False}

    def write() -> list[list[int]]:
        ids = torch.tensor(prompts)
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            pad_token_id=0,
            **drawn,
        )
        found: list[list[int]] = written[:, PROMPT:].tolist()
        return found

    return write


def varied(spec: DecoderSpec) -> tuple[Decoder, torch.Generator]:
    """A random model whose layers count, so that its greedy tokens differ, and what drew it."""
    model = Decoder(spec)
    init_weights(model, 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attention.out.weight", "ffn.down.weight")):
                bound = weight.shape[1] ** -0.5
                weight.uniform_(-bound, bound, generator=draw)
    return model, draw


def measure(case: str) -> dict[str, Any]:
    """One case. Raises if the two sides do not write the same greedy tokens."""
    size, mode = CASES[case]
    spec = SPECS[size]
    model, draw = varied(spec)
    prompts = torch.randint(0, spec.vocab_size, (BATCH, PROMPT), generator=draw).tolist()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        other = load(Path(folder))
    if (apart := gap(model, other, prompts)) > GAP:
        raise SystemExit(f"{case}: log-probabilities differ by {apart:.2g} nats")
    a, b = ours(model, prompts, mode), theirs(other, prompts, mode)
    first, second = a(), b()
    if {len(ids) for ids in [*first, *second]} != {NEW}:
        raise SystemExit(f"{case}: a side did not write {NEW} tokens")
    pairs = [pair for x, y in zip(first, second, strict=True) for pair in zip(x, y, strict=True)]
    same = statistics.mean(x == y for x, y in pairs)
    if mode == "greedy" and same < SAME:
        raise SystemExit(f"{case}: only {same:.0%} of the greedy tokens are the same")
    found = alternate(a, b, ROUNDS, 0, width=WIDTH, limit=LIMIT)
    tokens = BATCH * NEW
    return {
        "parameters": spec.num_parameters,
        "batch": BATCH,
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "settings": MODES[mode],
        "threads": torch.get_num_threads(),
        "same_tokens": same if mode == "greedy" else None,
        "largest_gap_nats": apart,
        "tokens_per_second": {
            "ours": tokens / statistics.median(found["a"]),
            "baseline": tokens / statistics.median(found["b"]),
        },
        "ratio": found["ratio_median"],
        "interval": [found["ratio_low"], found["ratio_high"]],
        "cpu_ratio": found["cpu_ratio_median"],
        "goal": GOALS[size],
        "reached": found["ratio_median"] >= GOALS[size],
        "rounds": len(found["a"]),
        "seconds": {"ours": rounded(found["a"]), "baseline": rounded(found["b"])},
        "machine": machine(),
    }


def main() -> int:
    """Measure the cases named, or all; print and keep them. Returns 1 if a goal is missed."""
    chosen = sys.argv[1:] or list(CASES)
    if unknown := [name for name in chosen if name not in CASES]:
        print(f"error: no such case: {', '.join(unknown)}. Known: {', '.join(CASES)}.", file=sys.stderr)
        return 2
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "0")) or len(os.sched_getaffinity(0)))
    kept = RESULTS / "generate.json"
    cases: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["cases"] if kept.exists() else {}
    print(f"{'case':<22}{'ours':>12}{'transformers':>14}{'ratio':>7}  {'95 %':<13}goal")
    for case in chosen:
        one = cases[case] = measure(case)
        speed, (low, high) = one["tokens_per_second"], one["interval"]
        print(
            f"{case:<22}{speed['ours']:8.0f} t/s{speed['baseline']:10.0f} t/s{one['ratio']:7.2f}"
            f"  {low:.2f}..{high:.2f}   {one['goal']:.1f} {'reached' if one['reached'] else 'MISSED'}",
            flush=True,
        )
        save(
            "generate",
            {
                "what": "tokens a second, and their ratio by rounds that alternate",
                "unit": "token/s",
                "baseline": "transformers.generate, sdpa, default cache",
                "cases": {name: cases[name] for name in CASES if name in cases},
            },
        )
    return int(not all(cases[case]["reached"] for case in chosen))


if __name__ == "__main__":
    sys.exit(main())
