"""Nothing loads torch's compiler before something is compiled; then functions stand apart as torch has it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.models.uncompiled import compiling, uncompiled
from tests.jobs.test_post_jobs import model

__all__ = ["model"]  # a fixture

ANSWERS = """
import sys
from shunter.cli.main import main
code = main(["chat", sys.argv[1], "--max-new-tokens", "4"])
sys.exit(code or ("torch._dynamo" in sys.modules) * 5)
"""


def test_a_conversation_does_not_wait_for_the_compiler(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, str(model)],
        input="What is 3?\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def graphs_of(work: Callable[[Tensor], Tensor]) -> tuple[list[list[str]], Tensor]:
    """The operations of each piece that is compiled of something around `work`, and what it computes."""
    found: list[list[str]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append([node.name for node in graph.graph.nodes if node.op == "call_method"])
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(lambda x: work(x.sin()).cos(), backend=backend)
    return found, compiled(torch.arange(3.0))


@pytest.mark.parametrize("told", [True, False])
def test_it_stands_apart_from_what_is_compiled_around_it(told: bool) -> None:
    """told: before something is compiled, as the package does it."""

    def double(x: Tensor) -> Tensor:
        assert not torch.compiler.is_compiling()
        return x.mul(2)

    own = uncompiled(double)
    if told:
        compiling()
    mine, theirs = graphs_of(own), graphs_of(torch.compiler.disable(double))
    assert mine[0] == theirs[0] == [["sin"], ["cos"]]
    torch.testing.assert_close(mine[1], (2 * torch.arange(3.0).sin()).cos())
    assert torch.equal(mine[1], theirs[1])
    assert uncompiled(double).__name__ == "double"
    torch.compiler.reset()


def test_weights_without_memory_are_not_drawn() -> None:
    spec = DecoderSpec(
        vocab_size=8, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, ffn_dim=8, max_positions=4
    )
    with torch.device("meta"):
        empty = Decoder(spec).embed
    drawn = Decoder(spec).embed
    assert empty.weight.is_meta
    assert empty.weight.requires_grad
    assert (empty.weight.shape, empty.weight.dtype) == (drawn.weight.shape, drawn.weight.dtype)
    assert {**vars(empty), "_parameters": 0} == {**vars(drawn), "_parameters": 0}
