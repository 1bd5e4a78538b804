"""How many bytes are held for backward passes: a measure that needs no GPU allocator."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor


class Held:
    """Stands for a tensor that is held; when it goes, so does the tensor."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """Around forward passes: counts what autograd saves in them, until their backwards let go of it.

    weights: tensors that are there anyway, and are not counted. A storage that is saved several times, as
    views or by several operations, counts once. Not counted: what an operation keeps outside autograd's
    saved tensors, such as the queue of deferred weight gradients.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in weights}
        self._holders: dict[int, int] = {}
        self._hooks: list[torch.autograd.graph.saved_tensors_hooks] = []

    def hold(self, tensor: Tensor) -> Held:
        """Count a tensor for as long as what is returned lives."""
        held = Held(tensor)
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if size and place not in self._known:
            holders = self._holders.get(place, 0)
            self._holders[place] = holders + 1
            if not holders:
                self.now += size
                self.peak = max(self.peak, self.now)
            weakref.finalize(held, self._drop, place, size)
        return held

    def _drop(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.now -= size

    def __enter__(self) -> SavedBytes:
        hooks = torch.autograd.graph.saved_tensors_hooks(self.hold, lambda held: held.tensor)
        hooks.__enter__()
        self._hooks.append(hooks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.pop().__exit__(kind, error, trace)
