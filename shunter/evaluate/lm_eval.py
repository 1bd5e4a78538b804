"""Our models under lm-evaluation-harness: its tasks, a person's local data, no network.

Imports the package lm-eval (an extra), so only a task of kind `lm-eval` imports this file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before `datasets` is imported: what is not on this machine is an error, not a download.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from shunter.config.errors import ShunterError
from shunter.evaluate.bits_per_byte import windows
from shunter.evaluate.config import LmEvalTask
from shunter.evaluate.intervals import Z95
from shunter.evaluate.likelihood import Scored, score_tokens
from shunter.evaluate.subject import Subject, Tick
from shunter.evaluate.writing import write

# Metrics of the harness that are shares of items.
_SHARES = ("acc", "acc_norm", "exact_match", "acc_bytes")


class HarnessModel(LM):
    """What the harness asks of a model: likelihoods of given text, and text.

    Every text begins after the model's start token, also where the harness gives a context: so the
    model was trained. A context that does not fit loses its beginning.
    """

    def __init__(self, subject: Subject, tick: Tick, *, chat: bool = False) -> None:
        super().__init__()
        self.subject, self._tick, self.chat = subject, tick, chat
        self.shortened = 0  # contexts that lost their beginning

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return str(self.subject.tokenizer.folder)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation by the model's template."""
        return self.subject.tokenizer.render(chat_history, add_generation_prompt=add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether greedy decoding would give it) a request."""
        sequences, begins = [], []
        for context, continuation in (request.args for request in requests):
            # Spaces between the two belong to the continuation's first token.
            kept = context.rstrip(" ") if not self.chat else context
            after = self.subject.tokenizer.encode(context[len(kept) :] + continuation)
            if len(after) > self.subject.context:
                raise ShunterError(
                    f"a continuation of {len(after)} tokens exceeds the context of {self.subject.name}, "
                    f"{self.subject.context} tokens"
                )
            before = self._fit(self._context(kept), self.subject.context - len(after))
            sequences.append([self.subject.start, *before, *after])
            begins.append(1 + len(before))
        return [
            (float(one.logprobs.sum()), bool(one.likeliest.all())) for one in self._score(sequences, begins)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of whole texts, each token predicted once, half a window of context kept."""
        cut = []
        for number, (text,) in enumerate(request.args for request in requests):
            ids = np.asarray([self.subject.start, *self.subject.tokenizer.encode(text)], dtype=np.int64)
            cut += windows(number, ids, self.subject.context, 0.5)
        sums = [0.0] * len(requests)
        scored = self._score([ids.tolist() for _, ids, _ in cut], [first for _, _, first in cut])
        for (number, _, _), one in zip(cut, scored, strict=True):
            sums[number] += float(one.logprobs.sum())
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Texts up to the first of the request's `until` strings."""
        found = []
        for number, (context, options) in enumerate(request.args for request in requests):
            count = int(options.get("max_gen_toks", 256))
            count = min(count, self.subject.context - 1)
            before = self._fit(self._context(context), self.subject.context - count - 1)
            sampled = bool(options.get("do_sample", False))
            written = write(
                self.subject,
                [[self.subject.start, *before]],
                max_new_tokens=count,
                temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
                seed=number,
                tick=lambda done, total: None,
            )
            self._tick(number + 1, len(requests), "texts")
            until = options.get("until") or []
            found.append(_before(written[0].text, [until] if isinstance(until, str) else until))
        return found

    def _context(self, text: str) -> list[int]:
        tokenizer = self.subject.tokenizer
        return tokenizer.encode_control(text) if self.chat else tokenizer.encode(text)

    def _fit(self, ids: list[int], room: int) -> list[int]:
        self.shortened += len(ids) > room
        return ids[max(0, len(ids) - room) :]

    def _score(self, sequences: list[list[int]], begins: list[int]) -> list[Scored]:
        self.subject.check_ids(sequences)
        total, done = sum(len(s) - b for s, b in zip(sequences, begins, strict=True)), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._tick(done, total, "tokens")

        return score_tokens(self.subject.decoder, sequences, begins, tick=advance)


def run(task: LmEvalTask, subject: Subject, base: Path, seed: int, tick: Tick) -> dict[str, Any]:
    """Scores and items of the harness's tasks that stand in the folder `task.path`.

    The harness runs in that folder, so that `data_files` of a task may be relative to it.
    """
    folder = base / task.path
    model = HarnessModel(subject, tick, chat=task.chat)
    with contextlib.chdir(folder):
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        unknown = [name for name in task.tasks if name not in manager.all_tasks]
        if unknown:
            raise ShunterError(
                f"no task {unknown[0]!r} for lm-eval",
                where=str(folder),
                mend=f"There are: {', '.join(sorted(manager.all_tasks)) or 'none'}.",
            )
        found = simple_evaluate(
            model,
            tasks=list(task.tasks),
            num_fewshot=task.fewshot,
            limit=task.limit or None,
            task_manager=manager,
            apply_chat_template=task.chat,
            bootstrap_iters=1000,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    assert found is not None
    scores, items = [], []
    for name, results in found["results"].items():
        samples = found["samples"].get(name, [])
        rows = [
            _score(name, key, value, results, samples)
            for key, value in results.items()
            if "," in key and "_stderr" not in key and isinstance(value, int | float)
        ]
        scores += rows
        if rows:
            metric = str(rows[0]["metric"])
            made = [_item(name, metric, str(rows[0]["unit"]), sample) for sample in samples]
            items += [item for item in made if item is not None]
    if scores:
        scores[0]["shortened"] = model.shortened
    return {"scores": scores, "items": items}


def _score(
    task: str, key: str, value: float, results: dict[str, Any], samples: list[dict[str, Any]]
) -> dict[str, Any]:
    """One of the harness's numbers: `acc,none` with `acc_stderr,none`."""
    metric, _, filtered = key.partition(",")
    error = results.get(f"{metric}_stderr,{filtered}")
    half = Z95 * float(error) if isinstance(error, int | float) else None
    share = metric in _SHARES
    score: dict[str, Any] = {
        "task": task,
        "metric": metric if filtered == "none" else f"{metric} {filtered}",
        "value": float(value),
        "low": None if half is None else max(0.0, value - half) if share else value - half,
        "high": None if half is None else min(1.0, value + half) if share else value + half,
        "unit": "fraction" if share else "",
        "n": len(samples),
        "interval": "95 %, 1.96 standard errors by lm-eval",
    }
    counts = [len(sample["arguments"]) for sample in samples]
    if metric.startswith("acc") and counts and min(counts) > 1:
        score["baseline"] = {"name": "chance", "value": sum(1 / count for count in counts) / len(counts)}
    return score


def _item(task: str, metric: str, unit: str, sample: dict[str, Any]) -> dict[str, Any] | None:
    """None for a metric that is no number for one sample, such as a perplexity of all words together: it
    cannot be compared sample by sample."""
    value = sample.get(metric.split(" ")[0])
    if not isinstance(value, int | float):
        return None
    first = sample["arguments"][0]
    prompt = first[0] if isinstance(first, list | tuple) else str(first)
    return {
        "task": task,
        "id": str(sample["doc_id"]),
        "metric": metric,
        "unit": unit,
        "prompt": str(prompt),
        "response": str(sample["filtered_resps"]),
        "target": str(sample["target"]),
        "score": float(value),
    }


def _before(text: str, until: Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    cuts = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    return text[: min(cuts)] if cuts else text
