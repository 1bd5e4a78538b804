"""RMSNorm with its gradient written out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), in x's dtype.

    The mean is taken in float32 at least. Of torch's own on a CPU, autograd keeps x / rms(x) beside x, and
    walks twice as often over memory. The compiler fuses such chains by itself, and on a GPU torch has one
    kernel for them, so these are given torch's own.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.is_cuda:
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)
    found: Tensor = _RMSNorm.apply(x, weight, eps)
    return found


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        unit = x * inverse
        both, wide = unit * grad, weight.to(unit.dtype)
        along = (both @ wide).div_(x.shape[-1])
        into = (grad * wide).addcmul_(unit, along[..., None], value=-1).mul_(inverse)
        wanted = ctx.needs_input_grad[1]  # not of a frozen one
        return into.to(x.dtype), both.flatten(0, -2).sum(0).to(weight.dtype) if wanted else None, None
