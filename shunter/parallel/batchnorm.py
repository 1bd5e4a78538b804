"""Batch normalisation whose running statistics are those of whole mini-batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shunter.private import AnyBatchNorm


class DeferredBatchNorm(AnyBatchNorm):
    """Normalises with each micro-batch's own moments; `commit` moves the running ones, once a mini-batch.

    What is committed are the moments of all samples since the last commit, as an unsplit batch has them
    (arXiv 1811.06965, section 2.1). A `Stage` commits at the end of a step and does not count what it
    recomputes. Names in the state dict are nn.BatchNorm's.
    """

    counting = True

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.forget()

    def forget(self) -> None:
        """Drop what was counted since the last commit."""
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None
        self._count = 0

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, ...]."""
        if not self.training:
            return super().forward(x)
        if self.counting and self.running_mean is not None:
            self._add(x)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)

    def commit(self) -> None:
        """Move the running mean and the unbiased running variance; nothing if nothing was counted."""
        if not self._count:
            return
        assert self._sum is not None
        assert self._squares is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        mean = self._sum / self._count
        variance = (self._squares - mean * self._sum) / max(1, self._count - 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)
        self.forget()

    @torch.no_grad()
    def _add(self, x: Tensor) -> None:
        # In float64: the difference of two large sums is taken at the end.
        samples = x.double().transpose(0, 1).flatten(1)
        first, second = samples.sum(1), samples.square().sum(1)
        self._sum = first if self._sum is None else self._sum + first
        self._squares = second if self._squares is None else self._squares + second
        self._count += samples.shape[1]

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dims after the channels."""


def defer_batchnorm(module: nn.Module) -> nn.Module:
    """Put a DeferredBatchNorm with the same parameters and buffers in the place of each nn.BatchNorm.

    Returns the module, or what stands for it if it is a batch norm itself.
    """
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        made = DeferredBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        made.train(module.training)
        made.weight, made.bias = module.weight, module.bias
        for name, buffer in module.named_buffers(recurse=False):
            made.register_buffer(name, buffer)
        return made
    for name, child in module.named_children():
        setattr(module, name, defer_batchnorm(child))
    return module
