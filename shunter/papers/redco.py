"""Any model over several processes without a declaration (arXiv 2310.16355).

Four small models under the module names of Llama, GPT-J, T5 and OPT, whose file knows nothing of processes,
learn on one process, and with each matrix in two and in four parts. Beside them, for Llama: the layout that
an expert writes by hand, copies, and weights sharded over ranks that see other rows. Then two tables without
processes: what a rank holds of models of 7 and 66 billion parameters, and how many lines a person writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.papers.experiment import Arm, Experiment, Samples
from shunter.record import events

PROJECT = Path(__file__).parents[2]
RECIPE = PROJECT / "recipes" / "papers" / "redco.yaml"
LAYERS = 2
# Family -> attentions and feed-forward layers, each of which is a pair of products.
PAIRS = {"llama": 2 * LAYERS, "gptj": 2 * LAYERS, "opt": 2 * LAYERS, "t5": 5 * LAYERS}
# Lookups in tables of a forward pass: rows are cut, so each takes a sum of its own.
TABLES = {"llama": 1, "gptj": 1, "opt": 2, "t5": 4}
RECORDED = 3  # the step whose messages are counted
EXPERT = (
    "q_proj=out k_proj=out v_proj=out o_proj=in gate_proj=out up_proj=out down_proj=in "
    "embed_tokens=0 lm_head=out"
)
# arXiv 2302.13971 (table 2) and 2205.01068 (table 1); positions of OPT with its offset of two.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "Llama-7B": {"family": "llama", "layers": 32, "width": 4096, "heads": 32, "words": 32000, "inner": 11008},
    "OPT-66B": {
        "family": "opt", "layers": 64, "width": 9216, "heads": 72, "words": 50272, "inner": 36864,
        "positions": 2050,
    },
}  # fmt: skip
PARTS = (1, 2, 4, 8, 16)
TASKS = ("sft", "dp_sgd", "maml")


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = ["jobs.own.train.epochs=1"] if short else []
    found = {}
    for family in PAIRS:
        base = [*quick, f"jobs.own.settings.family={family}"]
        found[f"{family}, one process"] = base
        for parts in (2, 4):
            found[f"{family}, tp {parts}"] = [*base, _parallel(tp=parts)]
    base = [*quick, "jobs.own.settings.family=llama"]
    rules = ", ".join(f'"{rule}"' for rule in EXPERT.split())
    found["llama, expert"] = [*base, _parallel(tp=4), f"jobs.own.train.rules=[{rules}]"]
    found["llama, copies"] = [*base, _parallel(dp=4), "jobs.own.how.micro_batch=1"]
    found["llama, sharded"] = [*base, _parallel(fsdp=4), "jobs.own.how.micro_batch=1"]
    return found


def _parallel(**axes: int) -> str:
    told = ", ".join(f"{axis}: {degree}" for axis, degree in axes.items())
    return f"jobs.own.how.parallel={{{told}, timeline: {RECORDED}}}"


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, Samples] = {}
    told = {name: events.read(arm["own"].path / "log" / "events.jsonl") for name, arm in arms.items()}
    for name, log in told.items():
        family = name.partition(",")[0]
        alone = told[f"{family}, one process"]
        losses, theirs = _losses(log), _losses(alone)
        mine: dict[str, float] = {
            "loss": losses[-1],
            "gap": max(abs(a - b) for a, b in zip(losses, theirs, strict=True)),
        }
        held, whole = (_last(each, "task")["bytes_here"] for each in (log, alone))
        mine["held"] = held / 1e6
        if (parts := _parts(name)) > 1:
            mine["share"] = parts * held / whole
        if traffic := [event for event in log if event["event"] == "traffic"]:
            ranks = traffic[-1]["ranks"]
            mine["bytes"] = sum(sum(rank["bytes"].values()) for rank in ranks) / 1e6
            sums = max(rank["forward"].get("all-reduce", 0) for rank in ranks)
            mine["sums"] = float(sums - TABLES[family]) if "tp" in name or "expert" in name else 0.0
        found[name] = mine
    for family, pairs in PAIRS.items():
        found[f"expected, {family}"] = {"sums": float(pairs), "share": 1.0}
    return {**found, **_predicted(), **_written()}


def _parts(name: str) -> int:
    """How many parts the weights are in; 1 for copies."""
    if name.endswith(("one process", "copies")):
        return 1
    return int(name.rpartition(" ")[2]) if "tp " in name else 4


def _losses(log: Sequence[Mapping[str, Any]]) -> list[float]:
    steps = {event["step"]: float(event["loss"]) for event in log if event["event"] == "step"}
    return [steps[step] for step in sorted(steps)]


def _last(log: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    return [event for event in log if event["event"] == kind][-1]


def _predicted() -> dict[str, Samples]:
    """Weights, gradients and AdamW's state of a rank in float32, GiB, from modules without values."""
    import torch

    from shunter.layout.anymodel import plan
    from shunter.layout.fused import Heads
    from shunter.parallel.generic.laid import weights_of
    from shunter.train.task.face import load

    found: dict[str, Samples] = {}
    for name, settings in SIZES.items():
        task = load(RECIPE.parent / "redco.py", settings)
        with torch.device("meta"):
            module = task.model()
        weights = list(weights_of(module).values())
        for parts in PARTS if name == "Llama-7B" else (*PARTS[1:], 24):
            laid = plan(weights, parts, Heads(settings["heads"], settings["heads"]))
            found[f"{name}, {parts} parts"] = {
                "memory": 16 * laid.held / 2**30,
                "share": parts * laid.held / laid.elements,
            }
    return found


def _written() -> dict[str, Samples]:
    """Lines of three tasks that are not the model or the data, with shunter and in plain torch."""
    found: dict[str, Samples] = {}
    for task in TASKS:
        ours = _between(PROJECT / "recipes" / "tasks" / f"{task}.py", "shunter")
        plain = _between(PROJECT / "bench" / "bare" / f"{task}.py", "bare")
        found[f"{task}, three functions"] = {"lines": float(ours)}
        found[f"{task}, plain torch"] = {"lines": float(plain)}
    return found


def _between(path: Path, mark: str) -> int:
    """Lines with code between `# mark: begin` and `# mark: end`."""
    text = path.read_text(encoding="utf-8").partition(f"# {mark}: begin\n")[2]
    text = text.partition(f"# {mark}: end")[0]
    lines = (line.strip() for line in text.splitlines())
    return sum(bool(line) and not line.startswith(("#", '"""')) for line in lines)


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        "sums: all-reduces of a forward pass on one rank, without those of tables. bytes: handed over "
        "in one step by all ranks, with what the gradient's norm and the loss need.",
        "sharded: all weights are brought together once a step, and all gradients added up once.",
        "memory: without activations. 24 parts of OPT-66B leave its 72 heads whole; 16 do not.",
        "lines: with what each needs for tensor and data parallelism, resume, evaluation, the best state; "
        "plain torch's learning to learn has no tensor parallelism.",
        "Speed is not measured: processes on two cores say nothing about it.",
    ]


EXPERIMENT = Experiment(
    slug="redco",
    recipe=RECIPE,
    arms=_arms,
    apart=tuple(name for name in _arms(0, False) if "one process" not in name),
    seeds=(0, 1, 2),
    measure=_measure,
    table={
        "sums": "sums of a forward pass, of pairs",
        "loss": "nats/token, last step",
        "gap": "nats/token, largest difference from one process",
        "held": "MB of weights on a rank",
        "share": "weights on a rank x parts / all weights",
        "bytes": "MB sent in a step, all ranks",
        "memory": "GiB a rank, predicted",
        "lines": "lines of code",
    },
    notes=_notes,
)
