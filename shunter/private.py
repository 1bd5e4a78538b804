"""Private names of torch 2.13 that cannot be avoided: all of them stand here, each with a test.

No other file of the package uses one (tests/test_private.py), so what a newer torch has changed is found, and
mended, in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.nn.modules.conv import _ConvNd as AnyConv
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["AnyBatchNorm", "AnyConv", "DispatchMode", "tree_leaves"]  # public but for where they stand

_ATEN = torch.ops.aten
# Attention that tells its log-sum-exp, and what takes its gradient.
flash_attention_cpu = _ATEN._scaled_dot_product_flash_attention_for_cpu
flash_attention_cpu_backward = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward
flash_attention_cuda = _ATEN._scaled_dot_product_flash_attention
flash_attention_cuda_backward = _ATEN._scaled_dot_product_flash_attention_backward


def kernels_of_products() -> set[Any]:
    """The operators behind grouped products, and behind attention that is fused."""
    import torch.nn.attention.varlen  # which registers its operator

    return {
        _ATEN._grouped_mm.default,
        flash_attention_cuda.default,
        flash_attention_cpu.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
        torch.ops.torch_attn._varlen_attn.default,
    }


class Only(DispatchMode):
    """One of torch's two modes of selective recomputation, which learns of those operations alone that may be
    kept.

    torch numbers every operation, and raises where the second time there is one more. Between a layer's own
    operations, though, stand those of `fully_shard` around its experts, or around its norms: in a backward
    their hooks gather what a forward found gathered, and take the experts for a root of their own.
    """

    supports_higher_order_operators = True

    def __init__(self, mode: DispatchMode, operations: Collection[Any]) -> None:
        super().__init__()
        self.mode, self.operations = mode, operations

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """So that a compiled layer may be in it, as in torch's own."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.operations:
            return self.mode.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def reordered(weight: Tensor) -> Tensor:
    """A copy of a linear layer's weight in oneDNN's order, for `linear` and `linear_with`."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return found


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
    """then: what is done to each number, such as "none"."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")
    return y


def linear_with(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, how: str) -> Tensor:
    """how: "add" or "mul", with `other`, number by number."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, how)
    return y


def place_of(storage: torch.UntypedStorage) -> int:
    """The same for all tensors that share it, and for no other storage that is alive; also where it has no
    memory, and so no address."""
    return int(storage._cdata)


def version_of(tensor: Tensor) -> int:
    """How often its memory was changed in place."""
    return int(tensor._version)


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The module's own, as it holds them: what is put into it takes their place, without being registered."""
    return module._parameters


def replace_each(module: nn.Module, by: Callable[[Tensor], Tensor]) -> None:
    """All parameters and buffers, one at a time: what one was is gone before the next is made."""
    module._apply(by)


def name_of(operation: Any) -> str:
    """An operator's name without its namespace and overload."""
    return str(operation._schema.name.partition("::")[2])


def arguments_of(operation: Any) -> list[str]:
    """The names of an operator's arguments, in order."""
    return [argument.name for argument in operation._schema.arguments]


def group_of(name: str) -> torch.distributed.ProcessGroup:
    """The process group of this name, by which functional collectives know it."""
    from torch._C._distributed_c10d import _resolve_process_group

    return _resolve_process_group(name)  # type: ignore[arg-type]


def passed_over(function: Any) -> None:
    """The compiler does not look into frames of this function's own code, whoever calls it."""
    from torch._dynamo.eval_frame import skip_code

    skip_code(function.__code__)


def keep_of_activations(share: float) -> None:
    """Models compiled from now on keep this share of the activations that the compiler would keep."""
    import torch._functorch.config

    torch._functorch.config.activation_memory_budget = share


def reduce_gradients(module: nn.Module) -> None:
    """Of a module to which `fully_shard` was applied: reduce what no backward hook has seen, for which torch
    has no public way. As torch.distributed.pipelining does it (stage.py, perform_reduce_grad)."""
    from torch.distributed.fsdp import fully_shard

    root = fully_shard.state(module)  # type: ignore[attr-defined]
    for state in root._state_ctx.all_states:
        for group in state._fsdp_param_groups:
            group.post_backward()
    root._root_post_backward_final_callback()
