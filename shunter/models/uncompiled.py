"""`torch.compiler.disable` that loads torch's compiler when something is compiled, and not before: a
conversation with a model, where nothing is, would wait for it as long as for all else of torch."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Found = TypeVar("Found")


def uncompiled(work: Callable[Given, Found]) -> Callable[Given, Found]:
    """The same function, whose operations stand apart from what is compiled around it."""
    apart: Callable[Given, Found] | None = None

    @functools.wraps(work)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        nonlocal apart
        if apart is None:
            if "torch._dynamo" not in sys.modules:
                return work(*args, **kwargs)
            apart = torch.compiler.disable(work)
        return apart(*args, **kwargs)

    return called
