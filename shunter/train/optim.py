"""Optimizers: which parameter gets which, and a state that is named, not numbered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shunter.train.config import TrainConfig


class Optimizers:
    """AdamW alone, or Muon (arXiv 2502.16982's scaling) for the layers' matrices and AdamW for the rest.

    The state is keyed by parameter name, so it does not depend on the order in which a layout
    happens to list parameters.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        hidden = {
            name: p
            for name, p in parameters.items()
            if config.optimizer == "muon" and p.ndim == 2 and "layers" in name.split(".")
        }
        rest = {name: p for name, p in parameters.items() if name not in hidden}
        groups = [
            {"params": [p for p in rest.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.parts: list[torch.optim.Optimizer] = []
        if groups:
            beta1, beta2 = config.betas
            self.parts.append(
                torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)
            )
        if hidden:
            self.parts.append(
                torch.optim.Muon(
                    list(hidden.values()),
                    lr=config.lr,
                    momentum=config.momentum,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self.materialise()

    def materialise(self) -> None:
        """Give every parameter the zero state that the first step would give it."""
        for part in self.parts:
            for group in part.param_groups:
                for p in group["params"]:
                    if isinstance(part, torch.optim.AdamW):
                        part.state[p] = {
                            "step": torch.zeros((), dtype=torch.float32, device=p.device),
                            "exp_avg": torch.zeros_like(p),
                            "exp_avg_sq": torch.zeros_like(p),
                        }
                    else:
                        part.state[p] = {"momentum_buffer": torch.zeros_like(p)}

    def step(self, rate: float) -> None:
        """One update of all parameters at the learning rate `rate`."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The live state tensors by parameter name: saved from, and loaded into in place."""
        return {self.names[id(p)]: dict(state) for part in self.parts for p, state in part.state.items()}
