"""Muon, computed in the width that the processor multiplies fast.

torch's own orthogonalises in bfloat16. A CPU that has no instructions for it takes 20 to 50 times as long for
such products as in float32, and a small model's step then consists of little else: on AVX2 alone an update of
768 x 256 took 1.3 s, in float32 0.04 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shunter.record.processor import has_bf16


class Muon(torch.optim.Muon):
    """torch's Muon (Keller Jordan's; the update's size by arXiv 2502.16982, section 2.2), whose iterations
    are in float32 where parameters are on a CPU without products in bfloat16. Its state is the same."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        if has_bf16() or any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        assert closure is None, "a loss that is computed again is not asked for here"
        for group in self.param_groups:
            assert group["adjust_lr_fn"] == "match_rms_adamw"
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return None

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        held = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = grad.lerp(held, momentum) if group["nesterov"] else held
        update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"]
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.add_(update.to(parameter.dtype), alpha=-rate * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """[m, n], about the nearest matrix with orthogonal rows or columns, by Newton's and Schulz's iteration in
    float32 at least: with a, b, c, X becomes a X + (b G + c G G) X, where G = X X^T."""
    a, b, c = coefficients
    x = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
