"""What lm-evaluation-harness is asked for, and what is made of its answer: with a stand-in for the package.

That the harness takes it so, tests/evaluate/test_lm_eval.py shows where it is installed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.evaluate.config import LmEvalTask
from tests.evaluate.small import a_subject, a_tokenizer, no_tick


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of `simple_evaluate`; each asks the model two likelihoods and one text."""
    made: list[dict[str, Any]] = []

    def simple_evaluate(model: Any, **options: Any) -> dict[str, Any]:
        pairs = [("the people", " of peace"), ("the people", " of work")]
        made.append(
            {
                **options,
                "likelihoods": model.loglikelihood([SimpleNamespace(args=pair) for pair in pairs]),
                "rolling": model.loglikelihood_rolling([SimpleNamespace(args=("the people",))]),
                "texts": model.generate_until(
                    [SimpleNamespace(args=("the people", {"until": ["."], "max_gen_toks": 4}))]
                ),
            }
        )
        return {
            "results": {"follows": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "follows"}},
            "samples": {
                "follows": [
                    {"arguments": pairs, "doc_id": n, "acc": n, "filtered_resps": [n], "target": 0}
                    for n in range(2)
                ]
            },
        }

    class TaskManager:
        all_tasks = ("follows",)

        def __init__(self, **options: Any) -> None:
            made.append(options)

    def module(name: str, **values: Any) -> None:
        found = ModuleType(name)
        vars(found).update(values)
        monkeypatch.setitem(sys.modules, name, found)

    module("lm_eval")
    module("lm_eval.api")
    module("lm_eval.api.model", LM=type("LM", (), {}))
    module("lm_eval.evaluator", simple_evaluate=simple_evaluate)
    module("lm_eval.tasks", TaskManager=TaskManager)
    monkeypatch.delitem(sys.modules, "shunter.evaluate.lm_eval", raising=False)
    yield made
    sys.modules.pop("shunter.evaluate.lm_eval", None)  # a later import finds the real one, or none


def test_scores_and_what_is_asked(calls: list[dict[str, Any]], tmp_path: Any) -> None:
    ours = importlib.import_module("shunter.evaluate.lm_eval")
    subject = a_subject(a_tokenizer(tmp_path / "tokenizer"), context=64)
    (tmp_path / "tasks").mkdir()
    task = LmEvalTask(kind="lm-eval", path="tasks", tasks=["follows"], fewshot=2, limit=3)
    found = ours.run(task, subject, tmp_path, 5, no_tick)
    manager, asked = calls
    assert manager == {"include_path": str(tmp_path / "tasks"), "include_defaults": False}
    assert (asked["tasks"], asked["num_fewshot"], asked["limit"]) == (["follows"], 2, 3)
    assert {value for key, value in asked.items() if key.endswith("_seed")} == {5}
    assert all(logprob < 0 for logprob, _ in asked["likelihoods"])
    assert asked["rolling"][0] < 0
    assert "." not in asked["texts"][0]
    (score,) = found["scores"]
    assert (score["task"], score["metric"], score["value"], score["n"]) == ("follows", "acc", 0.5, 2)
    assert (score["low"], score["high"]) == (pytest.approx(0.304, abs=1e-3), pytest.approx(0.696, abs=1e-3))
    assert score["baseline"] == {"name": "chance", "value": 0.5}


def test_an_unknown_task_is_refused(calls: list[dict[str, Any]], tmp_path: Any) -> None:
    ours = importlib.import_module("shunter.evaluate.lm_eval")
    (tmp_path / "tasks").mkdir()
    subject = a_subject(a_tokenizer(tmp_path / "tokenizer"), context=64)
    task = LmEvalTask(kind="lm-eval", path="tasks", tasks=["gone"])
    with pytest.raises(ShunterError, match=r"no task 'gone' for lm-eval.*There are: follows"):
        ours.run(task, subject, tmp_path, 0, no_tick)
