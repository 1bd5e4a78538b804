"""`torch.compiler.disable` that loads torch's compiler when something is compiled, and not before: a
conversation with a model, where nothing is, would wait for it as long as for all else of torch."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from shunter.private import passed_over

Given = ParamSpec("Given")
Found = TypeVar("Found")


def uncompiled(work: Callable[Given, Found]) -> Callable[Given, Found]:
    """The same function, whose operations stand apart from what is compiled around it."""
    apart: Callable[Given, Found] | None = None

    def settle() -> None:
        nonlocal apart
        if apart is None:
            apart = torch.compiler.disable(work)
            passed_over(called)

    @functools.wraps(work)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        if apart is None:
            if "torch._dynamo" not in sys.modules:
                return work(*args, **kwargs)
            settle()  # compiled by someone who did not call `compiling`
        assert apart is not None
        return apart(*args, **kwargs)

    _SETTLE.append(settle)
    return called


_SETTLE: list[Callable[[], None]] = []


def compiling() -> None:
    """To be called before something of the package is compiled: what stands apart is known to torch then, and
    the compiler need not find out in the midst of its work, function by function."""
    while _SETTLE:
        _SETTLE.pop()()
