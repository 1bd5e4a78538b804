"""Editing by programs against writing texts anew: documents a second of one model with random weights, which
reads a document and writes as many tokens as either needs (RefineX, arXiv 2507.03253; its card's part b).

How many tokens that is says the case, not the model: `litter` takes them from the made-up pages of
`shunter reproduce refinex`, with the right program and the clean text; `page` is a page of 1,000 tokens in 60
lines, of which a quarter goes by a program of 60 tokens: made up, and near what a web page asks for.

`python -m bench.refine` measures both on the CPU, `--tiny` tries it on a model that says nothing, `--device
cuda` takes 0.6B weights in bfloat16. Nothing is kept of `--tiny`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.measure import alternate, machine, rounded, save
from shunter.data import litter
from shunter.data.curation.differences import distil
from shunter.data.curation.edits import numbered, written
from shunter.data.tokenizer import train
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec

DOCUMENTS, BATCH, VOCABULARY = 32, 16, 768
SAMPLE = 800  # documents that the tokenizer learns from
LINES, PAGE, PROGRAM, LEFT = 60, 1000, 60, 750  # of a page; tokens
# (width, layers, heads, key heads, width of a head, inner width): 0.6B has the shape of Qwen3-0.6B.
SIZES = {"tiny": (32, 2, 2, 1, 16, 64), "6M": (256, 8, 8, 4, 32, 704), "0.6B": (1024, 28, 16, 8, 128, 3072)}
Case = tuple[list[int], list[int], list[int], list[int]]  # tokens read and written, by programs and anew


def cases(documents: int) -> dict[str, Case]:
    """The lengths of each document."""
    made = [each for each in litter.littered(SAMPLE, 0) if each.clean]
    programs = [written(distil(each.text, each.clean)[0] or []) for each in made]
    shown = [numbered(each.text) for each in made]
    engine = train([*shown, *programs], VOCABULARY, digits=False)

    def lengths(texts: Sequence[str]) -> list[int]:
        return [len(each.ids) for each in engine.encode_batch(list(texts[:documents]))]

    raw = lengths([each.text for each in made])
    page = [[size] * documents for size in (PAGE + 4 * LINES, PROGRAM, PAGE, LEFT)]
    return {
        "litter": (lengths(shown), lengths(programs), raw, lengths([each.clean for each in made])),
        "page": (page[0], page[1], page[2], page[3]),
    }


def work(model: Decoder, read: Sequence[int], new: Sequence[int]) -> Callable[[], None]:
    """Read and write that many tokens of each document, with room for all that runs together."""
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(VOCABULARY, (size,), generator=draw).tolist() for size in read]
    config = SamplingConfig(temperature=0.0, max_new_tokens=max(new), batch=BATCH)
    room = sum(sorted((a + b + 16 for a, b in zip(read, new, strict=True)), reverse=True)[:BATCH])

    def run() -> None:
        engine = RolloutEngine(model, config, tokens=room)
        for prompt, most in zip(prompts, new, strict=True):
            engine.submit(prompt, max_new_tokens=most)
        engine.run()

    return run


def measure(case: Case, size: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Documents a second of both ways, by turns."""
    read, programs, text, clean = case
    width, layers, heads, kv_heads, head, inner = SIZES[size]
    spec = DecoderSpec(
        vocab_size=VOCABULARY, max_positions=max(read) + max(text) + max(clean), dim=width,
        num_layers=layers, num_heads=heads, num_kv_heads=kv_heads, head_dim=head, ffn_dim=inner, tied=True,
    )  # fmt: skip
    model = Decoder(spec)
    init_weights(model, 0)
    model = model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    ours, theirs = work(model, read, programs), work(model, text, clean)

    def finished(side: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            side()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    found = alternate(finished(ours), finished(theirs), rounds, 1)
    mean = {
        name: statistics.mean(values)
        for name, values in (("read", read), ("program", programs), ("text", text), ("anew", clean))
    }
    return {
        "parameters": spec.num_parameters,
        "documents": len(read),
        "tokens": {
            "programs": {"read": mean["read"], "written": mean["program"]},
            "anew": {"read": mean["text"], "written": mean["anew"]},
        },
        "threads": torch.get_num_threads(),
        "documents_per_second": {
            "programs": len(read) / statistics.median(found["a"]),
            "anew": len(read) / statistics.median(found["b"]),
        },
        "ratio": found["ratio_median"],
        "interval": [found["ratio_low"], found["ratio_high"]],
        "cpu_ratio": found["cpu_ratio_median"],
        "others": found["others"],
        "seconds": {"programs": rounded(found["a"]), "anew": rounded(found["b"])},
        "machine": machine(),
    }


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="Edit programs against writing anew, in documents a second.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    size = "tiny" if asked.tiny else "0.6B" if asked.device == "cuda" else "6M"
    found = {}
    for name, case in cases(4 if asked.tiny else DOCUMENTS).items():
        one = found[name] = measure(case, size, torch.device(asked.device), 2 if asked.tiny else 5)
        rates, (low, high) = one["documents_per_second"], one["interval"]
        few, many = (one["tokens"][way]["written"] for way in ("programs", "anew"))
        print(
            f"{name:<8}{few:6.0f} against {many:.0f} tokens written: "
            f"{rates['programs']:.2f} against {rates['anew']:.2f} documents/s, {one['ratio']:.2f} times "
            f"({low:.2f}..{high:.2f}; by CPU seconds {one['cpu_ratio']:.2f})",
            flush=True,
        )
    if not asked.tiny:
        name = "refine" if asked.device == "cpu" else "refine_cuda"
        what = "documents a second that a model with random weights edits by programs, and writes anew"
        save(name, {"what": what, "unit": "document/s", "cases": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
