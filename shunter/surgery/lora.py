"""Adapters put into a decoder, and merged back into an ordinary one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.models.adapted_experts import OF, AdaptedExperts
from shunter.models.adapter import AdaptedLinear, projections
from shunter.models.decoder import Decoder, RMSNorm
from shunter.models.moe import Experts, MoE
from shunter.models.packed import PackedWeight
from shunter.models.router import Router
from shunter.surgery.config import AdapterConfig

Fill = Callable[[str, Tensor], None]


def attach(decoder: Decoder, config: AdapterConfig, seed: int) -> None:
    """Freeze the decoder, hold its layers' weights as configured, and put adapters beside them, in place.

    A is drawn as peft draws it, uniform within 1 / sqrt(its columns), each from a stream of its own; B is
    zero, so that the model begins as the one that it was. Experts have one of each target apiece; routers
    stay as they are. What stays trainable has `requires_grad`.
    Raises ShunterError for a rank that a matrix has no room for, for a head that is the embedding, and for
    a router's bias that would be moved, which adapters do not carry. On the meta device nothing is drawn:
    see `filler`.
    """
    spec = decoder.spec
    if spec.experts is not None and spec.experts.bias_update:
        raise ShunterError(
            "bias_update moves biases of routers, which are no part of an adapter",
            where="adapter",
            mend="Set experts.bias_update to 0, or train the whole model.",
        )
    if spec.tied and "head" in config.also and "embed" not in config.also:
        raise ShunterError(
            "the head of this model is its embedding, so it cannot be trained without it",
            where="adapter.also",
            mend="Write [embed, head], or leave head out.",
        )
    for name, count, columns in _sizes(decoder):
        if name in config.targets and config.rank > min(count, columns):
            raise ShunterError(
                f"rank {config.rank} is above the smaller side of {name}, which is {count} x {columns}",
                where="adapter.rank",
                mend=f"Use at most {min(count, columns)}.",
            )
    decoder.requires_grad_(False)
    for number, layer in enumerate(decoder.layers):
        block = layer.get_submodule("ffn")
        if isinstance(block, MoE):
            adapted = [name for each in OF.values() for name in each if name in config.targets]
            if adapted or config.quantise != "none":
                assert isinstance(block.experts, Experts)
                block.experts = AdaptedExperts(
                    block.experts, adapted, config.rank, config.scale, config.quantise
                )
        for module, rows in projections(spec, number).items():
            adapted = [name for name in rows if name in config.targets]
            parent, _, leaf = module.rpartition(".")
            owner = layer.get_submodule(parent)
            linear = getattr(owner, leaf)
            if adapted or config.quantise != "none":
                made = AdaptedLinear(linear, rows, adapted, config.rank, config.scale, config.quantise)
                setattr(owner, leaf, made)
    _widen(decoder)
    for norm in decoder.modules():
        if isinstance(norm, RMSNorm) and "norms" in config.also:
            norm.requires_grad_(True)
    if "embed" in config.also:
        decoder.embed.requires_grad_(True)
    if "head" in config.also and decoder.head is not None:
        decoder.head.requires_grad_(True)
    for name, parameter in decoder.named_parameters():
        if not parameter.is_meta and _is_adapter(name):
            _draw(name, parameter, seed)


def filler(decoder: Decoder, seed: int, read: Fill) -> Fill:
    """Gives the tensors of an adapted decoder their first values, by name and one at a time, those that
    `attach` gives them. decoder: as `attach` left it. read: gives those of the one that it was, in float32.

    A weight is read whole to be packed: a rank that keeps a part needs room for that one.
    """
    last: dict[str, PackedWeight] = {}

    def fill(name: str, tensor: Tensor) -> None:
        base, frozen, rest = name.partition(".frozen.")
        matrix, _, part = rest.rpartition(".")
        if _is_adapter(name):
            _draw(name, tensor, seed)
        elif not frozen:
            read(name, tensor)
        elif part == "whole":
            read(f"{base}.{matrix or 'weight'}", tensor)
        else:
            owner = decoder.get_submodule(base)
            assert isinstance(owner, AdaptedLinear | AdaptedExperts)
            weight = f"{base}.{matrix or 'weight'}"
            if weight not in last:
                last.clear()
                last[weight] = _packed(owner, weight, read)
            tensor.copy_(last[weight].get_parameter(part))

    return fill


def _packed(owner: AdaptedLinear | AdaptedExperts, name: str, read: Fill) -> PackedWeight:
    frozen = owner.frozen
    packed = frozen if isinstance(owner, AdaptedLinear) else frozen.get_submodule(name.rpartition(".")[2])
    assert isinstance(packed, PackedWeight)
    rows, columns = packed.piece.shape
    shape = (rows, columns) if isinstance(owner, AdaptedLinear) else (owner.num_experts, -1, columns)
    whole = torch.empty(rows, columns)
    read(name, whole.view(shape))
    return PackedWeight(whole, packed.kind)


def _sizes(decoder: Decoder) -> Iterator[tuple[str, int, int]]:
    """Rows and columns of each projection that may have an adapter, by target."""
    for number, layer in enumerate(decoder.layers):
        for module, rows in projections(decoder.spec, number).items():
            wide = layer.get_submodule(module)
            assert isinstance(wide, nn.Linear)
            yield from ((name, count, wide.in_features) for name, count in rows.items())
    experts = decoder.spec.experts
    if experts is not None:
        yield from ((name, experts.ffn_dim, decoder.spec.dim) for name in ("gate", "up"))
        yield "down", decoder.spec.dim, experts.ffn_dim


def is_adapted(decoder: Decoder) -> bool:
    """Whether some of its projections are `AdaptedLinear`, or experts `AdaptedExperts`."""
    return any(isinstance(module, AdaptedLinear | AdaptedExperts) for module in decoder.modules())


@torch.no_grad()
def merge_into(plain: Decoder, decoder: Decoder) -> None:
    """Copy the weights of an adapted `decoder`, the adapters added, into an ordinary one."""
    for name, target in plain.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = decoder.get_submodule(owner)
        if isinstance(module, AdaptedLinear) and leaf == "weight":
            target.copy_(module.merged(target.dtype))
        elif isinstance(module, AdaptedExperts):
            target.copy_(module.merged(leaf, target.dtype))
        else:
            target.copy_(module.get_parameter(leaf))
    for name, buffer in plain.named_buffers():  # a router's bias
        buffer.copy_(decoder.get_buffer(name))


def merged(decoder: Decoder) -> Decoder:
    """An ordinary decoder on the CPU that computes the same, in the type of the embedding."""
    with torch.device("meta"):
        plain = Decoder(decoder.spec)
    plain.to(dtype=decoder.embed.weight.dtype).to_empty(device="cpu")
    merge_into(plain, decoder)
    return plain


def _is_adapter(name: str) -> bool:
    return name.split(".")[-2] in ("a", "b")


@torch.no_grad()
def _draw(name: str, tensor: Tensor, seed: int) -> None:
    if name.split(".")[-2] == "b":
        tensor.zero_()
        return
    generator = torch.Generator(device=tensor.device).manual_seed(derive_seed(seed, "adapter", name))
    bound = tensor.shape[-1] ** -0.5
    tensor.uniform_(-bound, bound, generator=generator)


def _widen(decoder: Decoder) -> None:
    """All but the frozen weights of adapted layers to float32 at least: a model may be loaded as stored."""
    for module in decoder.modules():
        if isinstance(module, nn.Embedding | RMSNorm | nn.Linear | Router):
            module.to(torch.promote_types(module.weight.dtype, torch.float32))
        elif isinstance(module, AdaptedLinear) and module.bias is not None:
            module.bias.data = module.bias.data.to(torch.promote_types(module.bias.dtype, torch.float32))
