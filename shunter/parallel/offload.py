"""Layers whose inside is put aside in the host's memory until their backward.

What autograd would keep of such a layer is copied into pinned memory beside the computation, and back before
it is asked for: the copy of one layer runs while the next is computed, and backwards the layer before is
fetched while this one is computed. At most two layers are on the device at once then, the one that is
computed and the one that travels. No value is computed twice or rounded, so gradients are the same bits. On a
CPU, where the host's memory is the device's, the copies are made all the same: they gain nothing, and show
that the arithmetic is.

What is not put aside: parameters, gathered ones too, and what all layers share (rotary tables, masks).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shunter.private import place_of, version_of

FLIGHT = 2  # layers on the device at once: one is computed, one travels


class Aside:
    """Of one stage: its copying stream, and the layers of the pass that runs now.

    device: of the stage. A layer's `_Bundle` is made in its forward, and known to the next one's, so that it
    can be fetched in time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.last: _Bundle | None = None
        self._leaving: list[_Bundle] = []

    def begin(self, first: bool) -> _Bundle:
        """A layer's forward begins. first: of those of its stage, so that none of this pass is before it."""
        while len(self._leaving) >= FLIGHT:
            self._leaving.pop(0).let_go()
        bundle = _Bundle(self, None if first else self.last)
        self.last = bundle
        self._leaving.append(bundle)
        return bundle

    def release(self) -> None:
        """A backward begins: nothing more leaves."""
        while self._leaving:
            self._leaving.pop(0).let_go()
        self.last = None


class _Copy:
    """One storage: on the device while it leaves (`here`), in the host's memory, on the device again."""

    __slots__ = ("back", "here", "host")

    def __init__(self, host: torch.UntypedStorage, here: torch.UntypedStorage | None) -> None:
        self.host, self.here = host, here
        self.back: torch.UntypedStorage | None = None


class _Saved:
    """Stands for a tensor that autograd would have kept."""

    __slots__ = ("bundle", "copy", "place")

    def __init__(self, bundle: _Bundle, copy: _Copy, tensor: Tensor) -> None:
        self.bundle, self.copy = bundle, copy
        self.place = tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride()


class _Bundle:
    """What one layer put aside in one forward."""

    def __init__(self, aside: Aside, before: _Bundle | None) -> None:
        self.aside, self.before = aside, before
        self._copies: list[_Copy] = []
        # By storage and version: an address is used again as soon as its storage is gone.
        self._known: dict[tuple[int, int], tuple[Any, _Copy]] = {}
        self._gone: Any = None  # events of the copying stream: the last copy that left, and that came back
        self._there: Any = None

    def put(self, tensor: Tensor) -> _Saved:
        """Begin to copy the tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = place_of(storage), version_of(tensor)
        found = self._known.get(key)
        if found is None or found[0]() is not storage:
            found = weakref.ref(storage), self._leave(storage)
            self._known[key] = found
            self._copies.append(found[1])
        return _Saved(self, found[1], tensor)

    def take(self, saved: _Saved) -> Tensor:
        """The tensor, on the device again; the layer before begins to come back."""
        self.aside.release()
        self.fetch()
        if self._there is not None:  # for all of them: nothing else may have their memory before
            torch.cuda.current_stream(self.aside.device).wait_event(self._there)
            self._there = None
        if self.before is not None:
            self.before.fetch()
            self.before = None
        storage = saved.copy.back
        assert storage is not None
        dtype, offset, size, stride = saved.place
        return torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, size, stride)

    def fetch(self) -> None:
        """Begin to bring everything back that is not."""
        stream, copies = self.aside.stream, self._copies
        self._copies = []
        if stream is None:
            for copy in copies:
                copy.back = copy.host.clone()
        elif copies:
            # Memory of the stream that computes, so what was done there with it has to be over.
            backs = [torch.UntypedStorage(copy.host.nbytes(), device=self.aside.device) for copy in copies]
            stream.wait_stream(torch.cuda.current_stream(self.aside.device))
            with torch.cuda.stream(stream):
                for copy, back in zip(copies, backs, strict=True):
                    copy.back = back.copy_(copy.host, non_blocking=True)
                self._there = torch.cuda.Event()
                self._there.record(stream)

    def let_go(self) -> None:
        """Give up what is on the device, once its copies are made: the computing stream waits for them, so
        that what it takes the memory for next cannot come too early."""
        if self._gone is not None:
            torch.cuda.current_stream(self.aside.device).wait_event(self._gone)
            self._gone = None
        for copy in self._copies:
            copy.here = None
        self._known = {}

    def _leave(self, storage: torch.UntypedStorage) -> _Copy:
        stream = self.aside.stream
        if stream is None:
            return _Copy(to_host(storage), None)
        host = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=True).untyped_storage()
        stream.wait_stream(torch.cuda.current_stream(self.aside.device))
        with torch.cuda.stream(stream):
            host.copy_(storage, non_blocking=True)
            self._gone = torch.cuda.Event()
            self._gone.record(stream)
        return _Copy(host, storage)


def to_host(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """Where the device is the host."""
    return storage.clone()


def offload_layer(layer: nn.Module, aside: Aside, *, first: bool) -> None:
    """From now on what the layer's forward keeps for its backward is put aside.

    first: among those of its stage that are. Inside of what `fully_shard` does around a layer, as gathered
    weights are not to travel. A layer that is to be compiled is compiled before.
    """
    layer.forward = _Away(layer, aside, first)


def offload_layers(
    stages: Iterable[Mapping[int, nn.Module]], chosen: Sequence[int], device: torch.device
) -> None:
    """stages: of this rank, layers by number. chosen: numbers of the layers that are put aside."""
    for layers in stages:
        aside = Aside(device)
        for place, number in enumerate(sorted(layers.keys() & set(chosen))):
            offload_layer(layers[number], aside, first=place == 0)


class _Away:
    """Stands in for a layer's forward; a class, so that the module can still be copied."""

    def __init__(self, layer: nn.Module, aside: Aside, first: bool) -> None:
        self.layer, self.aside, self.first = layer, aside, first
        self.plain: Callable[..., Any] = layer.forward  # compiled, where it is

    def __call__(self, hidden: Tensor, *shared: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.plain(hidden, *shared)
        bundle = self.aside.begin(self.first)
        stays = {place_of(tensor.untyped_storage()) for tensor in _tensors(shared)}

        def pack(tensor: Tensor) -> Any:
            if not tensor.is_floating_point() or not tensor.numel():
                return tensor
            place = place_of(tensor.untyped_storage())
            if place in stays or any(place == place_of(p.untyped_storage()) for p in _plain(self.layer)):
                return tensor
            return bundle.put(tensor)

        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            return self.plain(hidden, *shared)


def _unpack(saved: Any) -> Any:
    return saved.bundle.take(saved) if isinstance(saved, _Saved) else saved


def _plain(layer: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers as they are now: gathered, where they are sharded between passes."""
    for tensor in (*layer.parameters(), *layer.buffers()):
        yield getattr(tensor, "_local_tensor", tensor)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Those in tuples. Plans of segments hold whole numbers, which stay anyway."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for each in tree:
            yield from _tensors(each)
