"""pass@1: held-out questions, answered some times each, and graded by the rules that `rl` learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.evaluate.config import VerifiedTask, label
from shunter.evaluate.exact_match import read
from shunter.evaluate.heldout import choose
from shunter.evaluate.intervals import bootstrap, mean
from shunter.evaluate.subject import Subject, Tick
from shunter.evaluate.writing import write

if TYPE_CHECKING:
    from shunter.post.rewards import Grader

FULL = 1 - 1e-9  # of the sum of weights: an answer that is worth less has not passed


def run(
    task: VerifiedTask, subject: Subject, folder: Path, grader: Grader, seed: int, tick: Tick
) -> dict[str, Any]:
    """Scores `pass@1` and `reward`, and an item a question: the share of its answers that pass.

    An answer passes when it is worth the sum of the weights of all rules that the data has something for.
    pass@1 is the mean over questions of the share of their answers that pass, which is unbiased for any
    number of answers (arXiv 2107.03374). A question that leaves no room for an answer counts as 0, and is
    counted (`too_long`).
    """
    from shunter.post.rewards import Item
    from shunter.post.targets import Wanted

    path, wanted = folder / "heldout.jsonl", Wanted(task.rewards)
    everything = read(path, task.task, wanted)
    problems = wanted.check(path)
    names = {rule.name: weight for rule, weight in grader.rules}
    everything = [talk for talk in everything if _full(talk.targets, names)]
    asked = [everything[i] for i in choose(len(everything), task.items, task.task, seed=seed)]
    ids = [subject.tokenizer.encode_prompt(talk.messages) for talk in asked]
    shown = [subject.tokenizer.render(talk.messages, add_generation_prompt=True) for talk in asked]
    fit = [i for i, prompt in enumerate(ids) if len(prompt) + task.max_new_tokens <= subject.context]
    if not fit:
        raise ShunterError(
            f"no conversation of {task.task!r} leaves {task.max_new_tokens} tokens for an answer in the "
            f"context of {subject.name}, {subject.context} tokens",
            mend="Lower max_new_tokens.",
        )
    places = [i for i in fit for _ in range(task.samples)]
    written = write(
        subject,
        [ids[i] for i in places],
        max_new_tokens=task.max_new_tokens,
        temperature=task.temperature,
        seed=derive_seed(seed, "verified", label(task)),
        tools=task.tools,
        tick=lambda done, total: tick(done, total, "answers"),
    )
    items = [
        Item(shown[i], one.text, asked[i].target, one.stop == "stop", targets=asked[i].targets)
        for i, one in zip(places, written, strict=True)
    ]
    graded = grader.grade(items)
    whole = [sum(_full(talk.targets, names).values()) for talk in asked]
    worth: list[list[float]] = [[] for _ in asked]
    for i, one in zip(places, graded, strict=True):
        worth[i].append(one.total)
    first = {i: text for i, text in reversed(list(zip(places, written, strict=True)))}
    lines = [
        {
            "task": label(task),
            "id": talk.id,
            "metric": "pass@1",
            "unit": "fraction",
            "prompt": shown[i],
            "response": first[i].text if i in first else "",
            "target": talk.target or next((each for each in talk.targets.values() if each), ""),
            "score": mean([float(total >= FULL * whole[i]) for total in worth[i]]) if worth[i] else 0.0,
        }
        for i, talk in enumerate(asked)
    ]
    counts = {"too_long": len(asked) - len(fit), "not_graded": sum(len(one.failed) > 0 for one in graded)}
    told = {**{name: n for name, n in counts.items() if n}, **grader.ends(), "answers": len(graded)}
    rewards = [mean(each) if each else 0.0 for each in worth]
    scores = [
        {
            "task": label(task),
            "metric": "pass@1",
            **_score([float(str(x["score"])) for x in lines], seed),
            **told,
        },
        {"task": label(task), "metric": "reward", **_score(rewards, seed)},
        {"task": label(task), "metric": "length", **_score([float(len(w.text)) for w in written], seed)},
    ]
    scores[2]["unit"] = "characters"
    told_too = {"problem": "; ".join(problems)} if problems else {}
    return {"scores": scores, "items": lines, **told_too}


def _full(targets: Mapping[str, str | None], weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of the rules that are asked."""
    return {name: weight for name, weight in weights.items() if targets.get(name, "") is not None}


def _score(values: Sequence[float], seed: int) -> dict[str, Any]:
    low, high = bootstrap(values, seed=seed)
    return {
        "value": mean(values), "low": low, "high": high, "unit": "fraction", "n": len(values),
        "interval": "95 % bootstrap over questions",
    }  # fmt: skip
