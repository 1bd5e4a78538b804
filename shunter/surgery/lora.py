"""Adapters put into a decoder, and merged back into an ordinary one."""

from __future__ import annotations

import torch
from torch import nn

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.models.adapter import AdaptedLinear, projections
from shunter.models.decoder import Decoder, RMSNorm
from shunter.surgery.config import AdapterConfig


def attach(decoder: Decoder, config: AdapterConfig, seed: int) -> None:
    """Freeze the decoder, hold its layers' weights as configured, and put adapters beside them, in place.

    A is drawn as peft draws it, uniform within 1 / sqrt(its columns), each from a stream of its own; B is
    zero, so that the model begins as the one that it was. What stays trainable has `requires_grad`.
    Raises ShunterError for a rank that a matrix has no room for, and for a head that is the embedding.
    """
    spec = decoder.spec
    if getattr(spec, "experts", None) is not None:
        raise ShunterError(
            "adapters beside experts are not there yet",
            where="adapter",
            mend="Tune a dense model, or leave it out.",
        )
    if spec.tied and "head" in config.also and "embed" not in config.also:
        raise ShunterError(
            "the head of this model is its embedding, so it cannot be trained without it",
            where="adapter.also",
            mend="Write [embed, head], or leave head out.",
        )
    for module, rows in projections(spec).items():
        wide = decoder.layers[0].get_submodule(module)
        assert isinstance(wide, nn.Linear)
        for name, count in rows.items():
            if name in config.targets and config.rank > min(count, wide.in_features):
                raise ShunterError(
                    f"rank {config.rank} is above the smaller side of {name}, which is "
                    f"{count} x {wide.in_features}",
                    where="adapter.rank",
                    mend=f"Use at most {min(count, wide.in_features)}.",
                )
    decoder.requires_grad_(False)
    for layer in decoder.layers:
        for module, rows in projections(spec).items():
            adapted = [name for name in rows if name in config.targets]
            parent, _, leaf = module.partition(".")
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
    _init(decoder, seed)


def is_adapted(decoder: Decoder) -> bool:
    """Whether some of its projections are `AdaptedLinear`."""
    return any(isinstance(module, AdaptedLinear) for module in decoder.modules())


@torch.no_grad()
def merge_into(plain: Decoder, decoder: Decoder) -> None:
    """Copy the weights of an adapted `decoder`, the adapters added, into an ordinary one."""
    for name, target in plain.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = decoder.get_submodule(owner)
        if isinstance(module, AdaptedLinear) and leaf == "weight":
            target.copy_(module.merged(target.dtype))
        else:
            target.copy_(module.get_parameter(leaf))


def merged(decoder: Decoder) -> Decoder:
    """An ordinary decoder on the CPU that computes the same, in the type of the embedding."""
    with torch.device("meta"):
        plain = Decoder(decoder.spec)
    plain.to(dtype=decoder.embed.weight.dtype).to_empty(device="cpu")
    merge_into(plain, decoder)
    return plain


@torch.no_grad()
def _init(decoder: Decoder, seed: int) -> None:
    for name, parameter in decoder.named_parameters():
        kind = name.split(".")[-2]
        if kind == "b":
            parameter.zero_()
        elif kind == "a":
            stream = derive_seed(seed, "adapter", name)
            generator = torch.Generator(device=parameter.device).manual_seed(stream)
            bound = parameter.shape[1] ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)


def _widen(decoder: Decoder) -> None:
    """All but the frozen weights of adapted layers to float32 at least: a model may be loaded as stored."""
    for module in decoder.modules():
        if isinstance(module, nn.Embedding | RMSNorm | nn.Linear):
            module.to(torch.promote_types(module.weight.dtype, torch.float32))
        elif isinstance(module, AdaptedLinear) and module.bias is not None:
            module.bias.data = module.bias.data.to(torch.promote_types(module.bias.dtype, torch.float32))
