"""A module of any kind laid out over the ranks of a mesh, without a declaration by its author.

tp: each weight is cut along the dim that `layout.anymodel` chooses; ranks see the same rows. Products of
known kinds are computed in parts, in pairs where a trial has shown that this is right. Weights of other
modules are brought together where they are used, which is right for any module.
fsdp: each weight is cut along some dim; ranks see other rows. All weights are brought together before the
model computes, within `Laid.gathered`, for what is read and when may depend on the rows.
dp: copies that see other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.layout.anymodel import WHOLE, Cut, Plan, plan
from shunter.layout.fused import Heads
from shunter.layout.holding import Holding
from shunter.layout.piece import Piece
from shunter.layout.rules import Weight
from shunter.parallel.generic import pairs, trial
from shunter.parallel.generic.collectives import bring
from shunter.parallel.generic.gathered import Gathered
from shunter.parallel.generic.products import Product, Table, computable, install, is_conv1d, kind_of
from shunter.parallel.generic.shards import Shard, hold
from shunter.parallel.generic.stored import Fill
from shunter.parallel.mesh import Mesh
from shunter.private import parameters_of

Probe = Callable[[], Tensor]
ALLOWED = ("pp", "cp", "ep", "etp")  # must be 1


@dataclass
class Laid:
    """parameters: this rank's parts by name, each once. held: what they are of the whole.

    computed: name -> "in a pair", "in parts", "brought together" or "whole". notes: for people.
    """

    module: nn.Module
    mesh: Mesh
    plan: Plan | None
    parameters: dict[str, nn.Parameter]
    held: dict[str, Holding]
    computed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _pairs: list[pairs.Pair] = field(default_factory=list)
    _gathered: Gathered | None = None

    def gathered(self) -> AbstractContextManager[None]:
        """The module computes within, and only there, where weights are cut over ranks that see other rows.
        All ranks enter together, then each runs its own code for as long as it likes."""
        return nullcontext() if self._gathered is None else self._gathered.whole()

    def add_up_gathered(self) -> None:
        """After the last backward of a step, still within `gathered`: give the parts their gradients."""
        if self._gathered is not None:
            self._gathered.add_up()

    def whole(self, name: str) -> Tensor:
        """A parameter as one process has it, on all ranks, which must all call it."""
        return self.assembled(name, self.parameters[name].detach())

    def assembled(self, name: str, part: Tensor) -> Tensor:
        """Anything that lies as a parameter does, such as its gradient, as one process has it."""
        piece, cut = self.held[name].piece, self.held[name].cut
        if piece.is_whole:
            return part
        dim = next(
            dim for dim, (a, b) in enumerate(zip(piece.shape, piece.local_shape, strict=True)) if a != b
        )
        blocks = self.plan.cuts[name].blocks if self.plan is not None else ()
        return bring(part, dim, self.mesh.peers(*cut), blocks)

    def own(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of something that lies as a parameter does."""
        found = torch.empty(self.held[name].piece.local_shape, dtype=whole.dtype, device=whole.device)
        for box in self.held[name].piece.boxes():
            found[box.slices(box.part)] = whole[box.slices(box.whole)]
        return found

    @contextmanager
    def without_pairs(self) -> Iterator[None]:
        """Within, each product is computed by itself, so that every activation is whole."""
        on = [(pair, pair.numbers) for pair in self._pairs if pair.on]
        for pair, _ in on:
            pair.switch_off()
        try:
            yield
        finally:
            for pair, numbers in on:
                pair.switch_on(numbers)

    @property
    def bytes(self) -> int:
        """Of the parameters on this rank."""
        return sum(p.nbytes for p in self.parameters.values())


def weights_of(module: nn.Module) -> dict[str, Weight]:
    """The parameters of a module, each once, in its order."""
    found = {}
    for name, parameter in module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        # Numbers that are no floats are packed: their shape says nothing of what they stand for.
        known = leaf == "weight" and parameter.is_floating_point()
        kind = kind_of(module.get_submodule(owner)) if known else "other"
        found[name] = Weight(name, tuple(parameter.shape), kind)
    return found


def heads_of(module: nn.Module) -> Heads:
    """Numbers of heads as the module's `config` tells them, where it has one."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    elif config is not None and not isinstance(config, Mapping):
        config = dict(vars(config))
    return Heads.of_config(config) if isinstance(config, Mapping) else Heads()


def lay_out(
    module: nn.Module,
    mesh: Mesh,
    *,
    overrides: Iterable[str] = (),
    published: bool = False,
    probe: Probe | None = None,
    fill: Fill | None = None,
    device: torch.device | None = None,
) -> Laid:
    """Cut a module, whose weights are the same on all ranks, in place. All ranks of the mesh call it.

    fill: gives the values of a module without (see `stored`): only this rank's part is made, on `device`.

    probe: computes the loss of a few examples, the same on all ranks, in the module's present state. With it,
    products come in pairs, and what comes out is compared with what came out before. Raises ShunterError for
    axes that cannot be, an override that matches nothing, and a module that does not compute the same in
    parts (one that reads its parameters beside its layers, for instance).
    """
    _allowed(mesh)
    expected = None if probe is None or fill is not None else _probed(module, probe)
    weights = weights_of(module)
    names = {id(p): name for name, p in module.named_parameters()}
    if mesh.grid.fsdp > 1:
        laid = _sharded(module, mesh)
    else:
        laid = _tensor(module, mesh, weights, names, overrides, published)
    if fill is not None:
        _filled(laid, fill, device or torch.device("cpu"))
        if probe is not None:  # each product by itself, which is right
            with laid.gathered():
                expected = _probed(module, probe)
    if probe is not None and expected is not None and mesh.grid.size > 1:
        with laid.gathered():
            _proven(laid, probe, expected)
    return laid


def _allowed(mesh: Mesh) -> None:
    grid = mesh.grid
    for axis in ALLOWED:
        if grid.degree(axis) > 1:
            raise ShunterError(
                f"{axis} needs a model whose layers declare how they are cut",
                mend="Use tp, fsdp and dp for a model of your own.",
            )
    if grid.tp > 1 and grid.fsdp > 1:
        raise ShunterError(
            "tp and fsdp together are not there for a model of your own", mend="Use one of them, with dp."
        )


def _places(module: nn.Module, names: Mapping[int, str]) -> Iterator[tuple[nn.Module, str, str]]:
    """Each place where a parameter stands (tied ones stand in several): owner, its leaf, the first name."""
    for owner in module.modules():
        for leaf, parameter in parameters_of(owner).items():
            if parameter is not None:
                yield owner, leaf, names[id(parameter)]


def _keeps_list(owner: nn.Module) -> bool:
    """Recurrent layers keep a list of their weights beside the parameters, and read that."""
    return isinstance(owner, nn.RNNBase)


def _tensor(
    module: nn.Module,
    mesh: Mesh,
    weights: Mapping[str, Weight],
    names: Mapping[int, str],
    overrides: Iterable[str],
    published: bool,
) -> Laid:
    peers = mesh.peers("tp")
    found = plan(list(weights.values()), peers.size, heads_of(module), overrides, published=published)
    cuts = dict(found.cuts)
    for owner, _, name in _places(module, names):
        if _keeps_list(owner):
            cuts[name] = WHOLE
    found = replace(found, cuts=cuts)
    parameters = dict(module.named_parameters())
    laid = Laid(module, mesh, found, parameters, {}, notes=list(found.notes))
    for name, parameter in parameters.items():
        piece = found.piece(name, peers.index)
        laid.held[name] = Holding(piece, ("dp",), () if piece.is_whole else ("tp",))
        laid.computed[name] = "whole" if piece.is_whole else "brought together"
        _shrink(parameter, piece)
    for owner, leaf, name in _places(module, names):
        cut = cuts[name]
        if cut.dim is not None:
            hold(owner, leaf, Shard(cut.dim, peers, cut.blocks))
    if peers.size > 1:
        _compute_in_parts(laid, names, peers)
        laid._pairs = pairs.find(module, peers)
    return laid


def _compute_in_parts(laid: Laid, names: Mapping[int, str], peers: Any) -> None:
    assert laid.plan is not None
    for owner in list(laid.module.modules()):
        weight = parameters_of(owner).get("weight")
        if weight is None or not computable(owner):
            continue
        name = names[id(weight)]
        cut = laid.plan.cuts[name]
        if isinstance(owner, nn.Embedding):
            install(owner, Table(owner, cut, peers))
        elif cut.dim is not None:
            outputs = 1 if is_conv1d(owner) else 0
            bias = parameters_of(owner).get("bias")
            follows = bias is None or laid.plan.cuts[names[id(bias)]].dim == 0
            if bias is not None and follows != (cut.dim == outputs):
                continue  # such as a bias that a person wants whole: brought together, that is right as well
            install(owner, Product(owner, Cut(cut.dim, cut.blocks, cut.dim == outputs), peers))
        else:
            continue
        if cut.dim is not None:
            _computed(laid, owner, "in parts")


def _computed(laid: Laid, owner: nn.Module, how: str) -> None:
    names = {id(p): name for name, p in laid.parameters.items()}
    for parameter in parameters_of(owner).values():
        if parameter is not None and not laid.held[names[id(parameter)]].piece.is_whole:
            laid.computed[names[id(parameter)]] = how


def _sharded(module: nn.Module, mesh: Mesh) -> Laid:
    peers = mesh.peers("fsdp")
    names = {id(p): name for name, p in module.named_parameters()}
    parameters = dict(module.named_parameters())
    laid = Laid(module, mesh, None, parameters, {})
    kept = {name for owner, _, name in _places(module, names) if _keeps_list(owner)}
    dims: dict[str, int] = {}
    for name, parameter in parameters.items():
        sizes = [(size, -dim) for dim, size in enumerate(parameter.shape) if size and size % peers.size == 0]
        if name in kept or not sizes:
            laid.held[name] = Holding(Piece.full(parameter.shape), ("dp", "fsdp"))
            laid.computed[name] = "whole"
            continue
        dims[name] = -max(sizes)[1]
        piece = Piece.full(parameter.shape).share(dims[name], peers.index, peers.size)
        laid.held[name] = Holding(piece, ("dp",), ("fsdp",))
        laid.computed[name] = "brought together"
        _shrink(parameter, piece)
    laid._gathered = Gathered(list(_places(module, names)), parameters, dims, peers)
    return laid


@torch.no_grad()
def _filled(laid: Laid, fill: Fill, device: torch.device) -> None:
    """Give the parts their values. A parameter without values cannot get some, so others take its place."""
    names = {id(p): name for name, p in laid.parameters.items()}
    places = list(_places(laid.module, names))
    for name, bare in laid.parameters.items():
        made = nn.Parameter(torch.empty_like(bare, device=device), requires_grad=bare.requires_grad)
        fill(name, laid.held[name].piece, made.data)
        laid.parameters[name] = made
    for owner, leaf, name in places:
        parameters_of(owner)[leaf] = laid.parameters[name]
    laid.module.to(device)


def _shrink(parameter: nn.Parameter, piece: Piece) -> None:
    """Keep the part alone, in the same parameter: tied ones stay tied, an optimizer keeps its own."""
    if piece.is_whole:
        return
    part = torch.empty(piece.local_shape, dtype=parameter.dtype, device=parameter.device)
    for box in piece.boxes():
        part[box.slices(box.part)] = parameter.data[box.slices(box.whole)]
    parameter.data = part


def _proven(laid: Laid, probe: Probe, expected: Tensor) -> None:
    """Try pairs, and compare the loss with that of the module before it was cut."""
    on = trial.settle(laid._pairs, probe_with_gradient(laid.module, probe), laid.mesh.everyone)
    parted = _in_parts(laid, on)
    got = _probed_or_none(laid.module, probe)
    if on and not (_agree(got, expected, laid) and _same_gradients(laid, probe, parted)):
        for pair in laid._pairs:
            pair.switch_off()
        on, parted = {}, set()
        laid.notes.append("Pairs of products did not fit together: each product is computed by itself.")
        got = _probed(laid.module, probe)
    if not _agree(got, expected, laid):
        raise ShunterError(
            f"laid out, the loss of the first examples is {_shown(got)}, and {_shown(expected)} in one piece",
            where=type(laid.module).__name__,
            mend="Let the loss use the model's outputs, not its parameters; or use dp alone.",
        )
    for pair in laid._pairs:
        if pair.second_path in on:
            for product in (*pair.firsts.values(), pair.second):
                _computed(laid, product.module, "in a pair")
    for name in parted:
        held = laid.held[name]
        laid.held[name] = Holding(held.piece, (*held.partial, "tp"), held.cut)


def _in_parts(laid: Laid, on: Mapping[str, frozenset[str]]) -> set[str]:
    """Names of parameters of whose gradient each tensor rank has a part."""
    names = {id(p): name for name, p in laid.parameters.items()}
    found = set()
    for pair in laid._pairs:
        inner = dict(pair.inside.named_parameters())
        found |= {names[id(inner[part])] for part in on.get(pair.second_path, ())}
    return found


def _same_gradients(laid: Laid, probe: Probe, parted: set[str]) -> bool:
    """Whether all pairs together give each gradient that products by themselves give, in training, with all
    weights moved at random: what begins at zero hides what stands before it."""
    peers = laid.mesh.peers("tp")
    cut = {name for name, held in laid.held.items() if "tp" in held.cut}
    with trial.moved(laid.parameters, cut, peers), trial.Quiet(), torch.random.fork_rng(devices=[]):
        with laid.without_pairs():
            wanted = _gradients(laid, probe)
        try:
            got = _gradients(laid, probe)
        except Exception:  # the person's code on sizes that it was not written for; all ranks alike
            got = None
        if not trial.all_say(got is not None, laid.mesh.everyone, wanted[0].device):
            return False
        assert got is not None
        for name in sorted(parted):
            torch.distributed.all_reduce(got[1].get(name, torch.zeros(())), group=peers.group)
    return trial.all_say(_close(wanted, got, rounding(laid)), laid.mesh.everyone, wanted[0].device)


def _gradients(laid: Laid, probe: Probe) -> tuple[Tensor, dict[str, Tensor]]:
    learning = {name: p for name, p in laid.parameters.items() if p.requires_grad}
    torch.manual_seed(0)
    with torch.enable_grad():
        loss = probe()
    found = torch.autograd.grad(loss, list(learning.values()), allow_unused=True) if learning else ()
    return loss.detach(), {
        name: torch.zeros_like(p) if grad is None else grad.contiguous().clone()
        for (name, p), grad in zip(learning.items(), found, strict=True)
    }


def _close(
    wanted: tuple[Tensor, dict[str, Tensor]], got: tuple[Tensor, dict[str, Tensor]], rough: float
) -> bool:
    """Relative to each gradient, and a little to the largest: some are zero but for rounding."""
    norms = {name: float(torch.linalg.vector_norm(grad.double())) for name, grad in wanted[1].items()}
    largest = max(norms.values(), default=0.0)
    good = abs(float(got[0] - wanted[0])) <= 100 * rough * (abs(float(wanted[0])) + 1e-6)
    for name, grad in wanted[1].items():
        gap = float(torch.linalg.vector_norm((got[1][name] - grad).double()))
        good = good and gap <= min(100 * rough, 0.1) * norms[name] + rough * largest
    return good


def probe_with_gradient(module: nn.Module, probe: Probe) -> Callable[[], Any]:
    """The probe in training and in evaluation, without dropout, but with gradients, so that it is seen what
    has one."""

    def run() -> None:
        with trial.Quiet(), torch.random.fork_rng(devices=[]), torch.enable_grad():
            probe()
            with _still(module):
                probe()

    return run


def _probed(module: nn.Module, probe: Probe) -> Tensor:
    with _still(module), torch.no_grad():
        return probe().detach().double()


def _probed_or_none(module: nn.Module, probe: Probe) -> Tensor | None:
    try:
        return _probed(module, probe)
    except Exception:  # the person's code on sizes that it was not written for; all ranks alike
        return None


def rounding(laid: Laid) -> float:
    """How much a loss may differ by rounding alone, relative: 16-bit weights round roughly."""
    rough = any(p.is_floating_point() and p.element_size() < 4 for p in laid.parameters.values())
    return 1e-2 if rough else 1e-5


def _agree(got: Tensor | None, expected: Tensor, laid: Laid) -> bool:
    allowed = rounding(laid) * expected.abs() + 1e-6
    good = got is not None and bool((got - expected).abs() <= allowed)
    return trial.all_say(good, laid.mesh.everyone, expected.device)


def _shown(value: Tensor | None) -> str:
    return "nothing" if value is None else f"{float(value):.6g}"


class _still:
    """Without dropout, and without a trace in the module's modes."""

    def __init__(self, module: nn.Module) -> None:
        self.modes = [(each, each.training) for each in module.modules()]
        self.module = module

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *raised: Any) -> None:
        for each, training in self.modes:
            each.training = training
