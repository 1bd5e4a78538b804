"""First weights: each parameter has its own stream, so every layout draws the same."""

from __future__ import annotations

import torch

from shunter.config.seed import derive_seed
from shunter.models.decoder import Decoder

_ZERO = ("attention.out.weight", "ffn.down.weight", "experts.down", "shared.down.weight", "bias")


@torch.no_grad()
def init_weights(model: Decoder, seed: int) -> None:
    """Embeddings N(0, 0.02), matrices U(-1, 1) / sqrt(fan in), norms 1, biases 0.

    The two projections that write into the residual stream begin at zero, so that each block begins
    as the identity (arXiv 2203.03466, appendix D.2, recommends it for hyperparameters that transfer).
    Each expert has a stream of its own: who holds a few draws no others.
    """
    for buffer in model.buffers():
        buffer.zero_()
    for name, parameter in model.named_parameters():
        generator = torch.Generator(device=parameter.device).manual_seed(derive_seed(seed, "init", name))
        if name.endswith(_ZERO):
            parameter.zero_()
        elif parameter.ndim == 3:
            for number, expert in enumerate(parameter):
                generator.manual_seed(derive_seed(seed, "init", name, number))
                bound = expert.shape[1] ** -0.5
                expert.uniform_(-bound, bound, generator=generator)
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name == "embed.weight":
            parameter.normal_(0.0, 0.02, generator=generator)
        else:
            bound = parameter.shape[1] ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
