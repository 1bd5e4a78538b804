"""First weights: each parameter has its own stream, so every layout draws the same."""

from __future__ import annotations

import torch
from torch import Tensor

from shunter.config.seed import derive_seed
from shunter.models.decoder import Decoder

_ZERO = ("attention.out.weight", "ffn.down.weight", "experts.down", "shared.down.weight", "bias")


def init_weights(model: Decoder, seed: int) -> None:
    """Embeddings N(0, 0.02), matrices U(-1, 1) / sqrt(fan in), norms 1, biases 0.

    The two projections that write into the residual stream begin at zero, so that each block begins
    as the identity (arXiv 2203.03466, appendix D.2, recommends it for hyperparameters that transfer).
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        draw(name, tensor, seed)


@torch.no_grad()
def draw(name: str, tensor: Tensor, seed: int) -> None:
    """Fill one parameter or buffer of a decoder, by its name there; whole, so that parts of it agree.

    Each expert has a stream of its own: who holds a few draws no others.
    """
    generator = torch.Generator(device=tensor.device).manual_seed(derive_seed(seed, "init", name))
    if name.endswith(_ZERO):
        tensor.zero_()
    elif tensor.ndim == 3:
        for number, expert in enumerate(tensor):
            generator.manual_seed(derive_seed(seed, "init", name, number))
            bound = expert.shape[1] ** -0.5
            expert.uniform_(-bound, bound, generator=generator)
    elif tensor.ndim == 1:
        tensor.fill_(1.0)
    elif name == "embed.weight":
        tensor.normal_(0.0, 0.02, generator=generator)
    else:
        bound = tensor.shape[1] ** -0.5
        tensor.uniform_(-bound, bound, generator=generator)
