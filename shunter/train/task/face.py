"""What a person writes: a model, examples, and three functions."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.train.task.draws import Draws
from shunter.train.task.source import NEEDED, told, undefined

Batch = Any  # tensors, or lists, tuples and mappings of them
Examples = Sequence[Any]
Predict = Callable[[Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Task:
    """model():  a new module; the same weights whoever calls it, for torch's seed is set before.
    train:    examples, a list; or a function of (epoch, predict) that gives those of an epoch, such as
              rollouts that `predict(list)` makes with the present weights. All epochs have as many.
    collate(examples) -> batch: tensors, or lists and mappings of them.
    loss(model, batch, draws) -> (sum, count): of what is averaged, such as tokens; the step's loss is the sum
              of all sums over the sum of all counts, however the batch is cut. A scalar alone is a mean over
              the batch's examples. draws: random numbers of each example.
    predict(model, batch, draws) -> one output for each example: a tensor [B, ..], or a list.
    weights:  a Hugging Face folder, instead of the values that `model` gives: each process reads its part.
    heldout:  examples to evaluate on. metrics(examples, outputs) -> numbers by name.
    step(step) -> numbers by name: in the place of gradient and update; see `task.step.Step`.
    """

    model: Callable[[], nn.Module]
    train: Examples | Callable[[int, Predict], Examples]
    collate: Callable[[Examples], Batch]
    loss: Callable[[nn.Module, Batch, Draws], Any] | None = None
    predict: Callable[[nn.Module, Batch, Draws], Any] | None = None
    heldout: Examples = ()
    metrics: Callable[[Examples, list[Any]], Mapping[str, float]] | None = None
    step: Callable[[Any], Mapping[str, float]] | None = None
    weights: Path | str | None = None

    def __post_init__(self) -> None:
        if self.loss is None and self.step is None:
            raise ShunterError("a task needs a function `loss`, or `step` in its place")
        if self.metrics is not None and self.predict is None:
            raise ShunterError("`metrics` needs a function `predict`, whose outputs it is given")
        for name in ("model", "collate", "loss", "predict", "metrics", "step"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ShunterError(f"`{name}` of a task is a {type(value).__name__}, not a function")

    @property
    def drawn_anew(self) -> bool:
        """Whether each epoch makes its own examples."""
        return callable(self.train)


NAMES = tuple(field.name for field in fields(Task))


class AsWritten(SourceFileLoader):
    """Compiles what the file says now. Python's cache tells a file that changed by its second and its size:
    one that a script writes twice within a second could run as it was before. What the file imports is
    cached as ever."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load(path: Path, settings: Mapping[str, Any] | None = None) -> Task:
    """The task that a Python file defines by these names, or as `task`. The file is run: it is the person's
    own program, named in their recipe. settings: what it finds under that name. Raises ShunterError for one
    that defines none."""
    if not path.is_file():
        raise ShunterError(
            "there is no such file", where=str(path), mend="Name a Python file that defines a task."
        )
    if path.suffix != ".py":
        raise ShunterError("this is no Python file", where=str(path), mend="Give it a name that ends in .py.")
    name = f"shunter_task_{path.stem}"
    loader = AsWritten(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    module.__dict__["settings"] = dict(settings or {})
    sys.modules[spec.name] = module  # dataclasses and pickle look for it there
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)  # as for a script: what stands beside it can be imported
    try:
        with told(path):
            loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    if isinstance(found := getattr(module, "task", None), Task):
        return found
    given = {name: getattr(module, name) for name in NAMES if hasattr(module, name)}
    if missing := [name for name in NEEDED if name not in given]:
        raise undefined(path, missing[0], set(vars(module)))
    try:
        if given.get("weights") is not None:
            given["weights"] = path.parent / given["weights"]
        return Task(**given)
    except ShunterError as error:
        raise ShunterError(error.what, where=str(path), mend=error.mend) from None


def first(examples: Examples, count: int) -> list[Any]:
    """The first few, of anything that has a length and gives its n-th example."""
    return [examples[number] for number in range(min(count, len(examples)))]


def summed(found: Any, examples: int) -> tuple[Tensor, Tensor]:
    """What `loss` returned, as sum and count; float64 scalars, the first with its gradient."""
    if isinstance(found, Tensor):
        if found.ndim:
            raise ShunterError(
                f"`loss` returns a tensor of shape {list(found.shape)}",
                mend="Return (sum, count), or a scalar.",
            )
        return found.double() * examples, found.new_tensor(examples).double()
    try:
        total, count = found
    except (TypeError, ValueError):
        raise ShunterError(
            f"`loss` returns {type(found).__name__}", mend="Return (sum, count), or a scalar."
        ) from None
    if not isinstance(total, Tensor) or total.ndim:
        raise ShunterError("the sum that `loss` returns is no scalar tensor")
    counted = count.detach() if isinstance(count, Tensor) else total.new_tensor(float(count)).detach()
    return total.double(), counted.double()


def moved(batch: Batch, device: Any) -> Batch:
    """Its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch
