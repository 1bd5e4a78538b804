"""Pairs are proposed by names and sizes, and decided by a trial: the module's own code, computed both ways.

What a module does between its products cannot be seen from outside: how it finds its heads, whether it
normalises over all of them, whether it splits a fused output. So each kind of pair is run on the inputs that
the model itself gives it, with weights moved at random (else zeros would hide a mistake), in training and in
evaluation, by itself and as a pair, and everything that comes out is compared: outputs, gradients of inputs,
gradients of each parameter. What differs stays by itself, which is always right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shunter.config.seed import derive_seed
from shunter.parallel.generic.pairs import Pair, form
from shunter.parallel.mesh import Peers
from shunter.private import parameters_of

# Largest difference, relative to the largest number, that rounding can explain. A wrong head is off by 1.
_ROUNDING = 1e-4  # also of float64: many models compute norms and softmax in float32 whatever they are given
_ROUGH = 5e-2  # of 16-bit numbers

Verdict = tuple[Mapping[str, Any], frozenset[str]]  # numbers to change, parameters whose gradient is in parts


def settle(pairs: Sequence[Pair], run: Callable[[], Any], everyone: Peers) -> dict[str, frozenset[str]]:
    """Switch on the pairs that are right. Returns, for each path that is on, the parameters in it of which
    each tensor rank has a part of the gradient.

    run: passes an example through the model, the same one on all ranks. All ranks of `everyone` call it.
    """
    verdicts: dict[Any, Verdict | None] = {}
    kinds = [_kind(pair) for pair in pairs]  # before any is switched on, which changes numbers
    given = _captured(pairs, kinds, run)
    on = {}
    for pair, kind in zip(pairs, kinds, strict=True):
        found: list[Verdict | None] = []
        for call in given.get(pair.second_path, []):
            key = kind, call.shape
            if key not in verdicts:
                verdicts[key] = _judge(pair, call, everyone)
            found.append(verdicts[key])
        first = found[0] if found else None
        if first is None or any(other != first for other in found):
            continue
        pair.forms = frozenset(call.form for call in given[pair.second_path])
        pair.parted = bool(first[1])
        pair.switch_on(first[0])
        on[pair.second_path] = first[1]
    return on


def _kind(pair: Pair) -> Any:
    """With the last name of its path: T5's attention of itself and of another are of one class."""
    names = [part for part in pair.path.split(".") if not part.isdigit()]
    return pair.kind, tuple(names[-1:])


@dataclass(frozen=True)
class _Given:
    """A call's arguments. learns: of each tensor of numbers among them, whether it has a gradient. shape: of
    the whole call, for comparison. form: the same without sizes."""

    args: Any
    named: Any
    learns: list[bool]
    shape: Any
    form: Any


def _captured(pairs: Sequence[Pair], kinds: Sequence[Any], run: Callable[[], Any]) -> dict[str, list[_Given]]:
    """What each pair's module is given: the first call of each form. Calls that look alike share one copy. A
    module that is given something that cannot be copied has none."""
    seen: dict[Any, _Given | None] = {}
    found: dict[str, dict[Any, _Given | None]] = {}
    hooks = []

    def watch(pair: Pair, kind: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, named: Any) -> None:
            shape, form_ = _shape((args, named)), form((args, named))
            if (kind, shape) not in seen:
                seen[kind, shape] = _copied(args, named, shape, form_)
            found.setdefault(pair.second_path, {}).setdefault(form_, seen[kind, shape])

        return hook

    for pair, kind in zip(pairs, kinds, strict=True):
        hooks.append(pair.inside.register_forward_pre_hook(watch(pair, kind), with_kwargs=True))
    try:
        run()
    finally:
        for each in hooks:
            each.remove()
    whole = {path: list(calls.values()) for path, calls in found.items()}
    return {path: calls for path, calls in whole.items() if None not in calls}  # type: ignore[misc]


def _shape(tree: Any) -> Any:
    """Containers, shapes and plain values of arguments; of other objects the class."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape), tree.dtype, tree.requires_grad
    if isinstance(tree, Mapping):
        return tuple((str(key), _shape(value)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return tuple(_shape(value) for value in tree)
    return tree if isinstance(tree, int | float | str | bool | None) else type(tree)


def _copied(args: Any, named: Any, shape: Any, form_: Any) -> _Given | None:
    """Copies, because caches among the arguments are written into."""
    try:
        learns = [x.requires_grad for x in _floats((args, named))]
        # A copy of what has a history would be refused.
        memo = {id(x): x.detach().clone() for x in _all_within((args, named), set())}
        args, named = copy.deepcopy((args, named), memo)
    except Exception:  # arguments may be anything
        return None
    return _Given(args, named, learns, shape, form_)


def _judge(pair: Pair, given: _Given, everyone: Peers) -> Verdict | None:
    """In training and in evaluation: code may do something else in each."""
    with moved(dict(pair.inside.named_parameters()), _cut(pair), pair.peers):
        for numbers in pair.ways():
            parted = [_parted(pair, given, numbers, training) for training in (True, False)]
            first = parted[0] if parted[0] == parted[1] else None
            if all_say(first is not None, everyone, _device(pair)):
                assert first is not None
                return dict(numbers), first
    return None


def _parted(pair: Pair, given: _Given, numbers: Mapping[str, Any], training: bool) -> frozenset[str] | None:
    with _mode(pair.inside, training):
        try:
            wanted = _outcome(pair, given, None)
        except Exception:  # such as outputs without a gradient; on all ranks alike
            return None
        pair.switch_on(numbers)
        try:
            got = _outcome(pair, given, wanted[0])
        except Exception:  # it is the person's code, on sizes that it was not written for
            return None
        finally:
            pair.switch_off()
        return _compared(wanted, got, pair.peers)


def _device(pair: Pair) -> torch.device | None:
    return next((p.device for p in pair.inside.parameters()), None)


@contextmanager
def _mode(inside: nn.Module, training: bool) -> Iterator[None]:
    """Nothing is dropped, what is drawn is the same each time, and buffers are left as they were."""
    was = [(module, module.training) for module in inside.modules()]
    buffers = {name: buffer.clone() for name, buffer in inside.named_buffers()}
    if training:  # those that a person keeps out of training stay out of it
        for module, before in was:
            module.training = before
    else:
        inside.eval()
    try:
        with Quiet(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, before in was:
            module.training = before
        with torch.no_grad():
            for name, buffer in inside.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


class Quiet(TorchFunctionMode):
    """Within, nothing is dropped."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return undropped(func, args, kwargs)


def undropped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """A function's value without dropout."""
    named = dict(kwargs or {})
    if func is torch.nn.functional.dropout:
        return args[0] if args else named["input"]
    if func is torch.nn.functional.scaled_dot_product_attention:
        args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
        if "dropout_p" in named:
            named["dropout_p"] = 0.0
    return func(*args, **named)


def _cut(pair: Pair) -> set[str]:
    """Names of parameters of which each rank has a part."""
    bias = parameters_of(pair.second.module)["bias"]
    cut = {
        id(p)
        for product in (*pair.firsts.values(), pair.second)
        for p in parameters_of(product.module).values()
    } - {id(bias)}
    return {name for name, p in pair.inside.named_parameters() if id(p) in cut}


@contextmanager
def moved(parameters: Mapping[str, nn.Parameter], cut: Container[str], peers: Peers) -> Iterator[None]:
    """Parameters moved at random, else zeros would hide a mistake: parts by rank, wholes alike on all."""
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            if not p.is_floating_point():
                continue
            draw = torch.Generator().manual_seed(
                derive_seed(peers.index if name in cut else 0, "trial", name)
            )
            size = p.float().square().sum()
            if name in cut:  # of the whole: parts of zeros and others must not be taken for each other
                dist.all_reduce(size, group=peers.group)
                size = size / peers.size
            scale = 0.5 * float((size / max(p.numel(), 1)).sqrt()) or 0.1
            p.add_((torch.randn(p.shape, generator=draw) * scale).to(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])


_Outcome = tuple[list[Tensor], list[Tensor | None], dict[str, Tensor | None]]


def _outcome(pair: Pair, given: _Given, like: Sequence[Tensor] | None) -> _Outcome:
    """Outputs, gradients of inputs and of parameters. like: outputs of all ranks together."""
    args, named = copy.deepcopy((given.args, given.named))
    torch.manual_seed(0)  # of the process's own, which the caller puts back
    inputs = [x for x, learns in zip(_floats((args, named)), given.learns, strict=True) if learns]
    with torch.enable_grad():
        for x in inputs:
            x.requires_grad_()
        outputs = list(_floats(pair.inside(*args, **named)))
        total = torch.zeros((), dtype=torch.float64, device=outputs[0].device if outputs else None)
        for place, out in enumerate(outputs):
            whole = out if like is None else like[place]
            draw = torch.Generator().manual_seed(derive_seed(0, "cotangent", place))
            wanted = torch.randn(whole.shape, generator=draw).to(out)
            total = total + (out * _own(wanted, out, pair.peers)).double().sum()
        parameters = {name: p for name, p in pair.inside.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(total, [*inputs, *parameters.values()], allow_unused=True)
    return (
        [out.detach() for out in outputs],
        list(grads[: len(inputs)]),
        dict(zip(parameters, grads[len(inputs) :], strict=True)),
    )


def _compared(wanted: _Outcome, got: _Outcome, peers: Peers) -> frozenset[str] | None:
    """Names of the parameters whose gradient is in parts; None where anything is another."""
    good = len(wanted[0]) == len(got[0]) and len(wanted[1]) == len(got[1])
    good = good and all(_near(_own(a, b, peers), b) for a, b in zip(wanted[0], got[0], strict=True))
    good = good and all(_near(a, b) for a, b in zip(wanted[1], got[1], strict=True))
    parted = set()
    # Each rank takes part in each sum, whatever it has seen so far.
    for name, a in wanted[2].items():
        b = got[2].get(name)
        same = _near(a, b)
        device = next((x.device for x in (a, b) if x is not None), None)
        if all_say(same, peers, device):
            continue
        if a is None or b is None or not all_say(a.shape == b.shape, peers, device):
            good = False
            continue
        total = b.contiguous().clone()
        dist.all_reduce(total, group=peers.group)
        if all_say(_near(a, total), peers, device):
            parted.add(name)
        else:
            good = False
    return frozenset(parted) if good else None


def _own(whole: Tensor, like: Tensor, peers: Peers) -> Tensor:
    """The part of an output that the pair leaves on this rank: of one dim, where the sizes say so."""
    differ = [dim for dim, (a, b) in enumerate(zip(whole.shape, like.shape, strict=False)) if a != b]
    if len(differ) == 1 and whole.shape[differ[0]] == peers.size * like.shape[differ[0]]:
        return whole.chunk(peers.size, differ[0])[peers.index]
    return whole


def _near(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or not bool(torch.isfinite(a).all() == torch.isfinite(b).all()):
        return False
    if not a.numel():
        return True
    size = float(a.abs().nan_to_num(0, 0, 0).max())
    gap = float((a - b).nan_to_num(0, 0, 0).abs().max())
    return gap <= (_ROUNDING if a.element_size() >= 4 else _ROUGH) * max(size, 1e-6)


def all_say(good: bool, peers: Peers, device: torch.device | None) -> bool:
    """Whether it is so on every rank."""
    if peers.size == 1:
        return good
    told = torch.tensor([int(good)], device=device)
    dist.all_reduce(told, dist.ReduceOp.MIN, group=peers.group)
    return bool(told)


def _all_within(tree: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors in containers, and in objects of any class."""
    if id(tree) in seen:
        return
    seen.add(id(tree))
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _all_within(value, seen)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _all_within(value, seen)
    elif not isinstance(tree, type | nn.Module) and hasattr(tree, "__dict__"):
        yield from _all_within(vars(tree), seen)


def _floats(tree: Any) -> Iterator[Tensor]:
    """Tensors of numbers that may have a gradient, in lists, tuples and mappings."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _floats(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _floats(value)
