"""Names of torch that are private: each means what `shunter.private` says, and no other file uses one.

What this cannot show: CUDA's kernels (tests/parallel/test_context_kernels.py, on a GPU).
"""

from __future__ import annotations

import ast
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shunter import private
from shunter.parallel.mesh import Groups
from tests.parallel.pool import Pool

PACKAGE = Path(private.__file__).parent
# Of objects of torch: by their owner's name nothing tells them from our own.
MEMBERS = {
    "_version", "_cdata", "_schema", "_parameters", "_buffers", "_modules", "_apply", "_state_ctx",
    "_fsdp_param_groups", "_get_backend", "_local_tensor", "_spec", "_saved_tensors",
}  # fmt: skip
ROOTS = {"torch", "nn", "dist", "F", "functional"}


def parts(node: ast.expr) -> list[str]:
    """`a.b.c` as words; nothing for what is no chain of names."""
    if isinstance(node, ast.Attribute):
        inner = parts(node.value)
        return [*inner, node.attr] if inner else []
    return [node.id] if isinstance(node, ast.Name) else []


def hidden(word: str) -> bool:
    return word.startswith("_") and not word.startswith("__")


def used(source: str) -> list[str]:
    """Private names of torch in a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            words = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"{node.module}: {word}" for word in words if hidden(word)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
            found += [name for name in names if any(map(hidden, name.split(".")))]
        elif isinstance(node, ast.Attribute) and hidden(node.attr):
            words = parts(node)
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if (words and words[0] in ROOTS) or (node.attr in MEMBERS and not own):
                found.append(ast.unparse(node))
    return found


def test_private_names_of_torch_stand_in_one_file() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != Path(private.__file__) and (names := used(path.read_text(encoding="utf-8")))
    }
    assert not found, "put these into shunter/private.py, with a test"


@pytest.mark.parametrize(
    "source",
    [
        "from torch.utils._pytree import tree_leaves",
        "from torch.nn.modules.conv import _ConvNd",
        "import torch._functorch.config as functorch",
        "torch.ops.aten._grouped_mm",
        "nn.modules.conv._ConvNd",
        "tensor.untyped_storage()._cdata",
    ],
)
def test_each_way_to_use_one_is_seen(source: str) -> None:
    assert used(source)
    assert not used("self._version; torch.__version__; module.weight; rank._beat()")


def test_kinds_of_layers() -> None:
    norms = nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.SyncBatchNorm(2)
    assert all(isinstance(each, private.AnyBatchNorm) for each in norms)
    assert not isinstance(nn.GroupNorm(1, 2), private.AnyBatchNorm)
    convolutions = nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)
    assert [isinstance(each, private.AnyConv) and each.transposed for each in convolutions] == [False, True]
    assert not isinstance(nn.Linear(1, 1), private.AnyConv)


def test_leaves_of_a_tree() -> None:
    assert private.tree_leaves({"a": [1, (2, 3)], "b": None}) == [1, 2, 3, None]


def test_a_mode_sees_each_operation_with_its_name_and_arguments() -> None:
    seen: list[tuple[str, list[str]]] = []

    class Noted(private.DispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append((private.name_of(func), private.arguments_of(func)))
            return func(*args, **(kwargs or {}))

    with Noted():
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert seen[-1] == ("mm", ["self", "mat2"])


def test_flash_attention_on_a_cpu_and_its_gradient() -> None:
    q, k, v, grad = (torch.randn(1, 2, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(4))
    expected = F.scaled_dot_product_attention(q, k, v)
    expected.backward(grad.detach())
    out, lse = private.flash_attention_cpu(q.detach(), k.detach(), v.detach(), 0.0, False, scale=8**-0.5)
    scores = (q @ k.transpose(-1, -2)).detach() * 8**-0.5
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    found = private.flash_attention_cpu_backward(
        grad.detach(), q.detach(), k.detach(), v.detach(), out, lse, 0.0, False, scale=8**-0.5
    )
    torch.testing.assert_close(found, (q.grad, k.grad, v.grad))


def test_flash_attention_on_cuda_has_the_arguments_that_are_given() -> None:
    forward = private.arguments_of(private.flash_attention_cuda.default)
    assert forward == ["query", "key", "value", "dropout_p", "is_causal", "return_debug_mask", "scale"]
    backward = private.arguments_of(private.flash_attention_cuda_backward.default)
    assert backward == [
        "grad_out", "query", "key", "value", "out", "logsumexp", "cum_seq_q", "cum_seq_k", "max_q", "max_k",
        "dropout_p", "is_causal", "philox_seed", "philox_offset", "scale",
    ]  # fmt: skip


def test_products_that_are_kept_are_those_that_layers_call() -> None:
    names = {private.name_of(each) for each in private.kernels_of_products()}
    assert {"_grouped_mm", "_varlen_attn", "_scaled_dot_product_flash_attention_for_cpu"} <= names
    assert len(names) == 6


def test_a_mode_for_some_operations_keeps_those_and_lets_others_be_more_the_second_time() -> None:
    """An operation more in the second run, which torch's own mode takes for a mistake."""
    weight = torch.randn(3, 3, requires_grad=True)
    x = torch.randn(2, 3, requires_grad=True)
    made: list[int] = []
    products = {torch.ops.aten.mm.default}

    class Count(private.DispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made.append(1) if func in products else None
            return func(*args, **(kwargs or {}))

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = torch.mm(x, weight).sin()
        return y + torch.zeros(2, 3) if len(runs) else y

    runs: list[int] = []

    def contexts() -> Any:
        def policy(*given: Any, **more: Any) -> CheckpointPolicy:
            return CheckpointPolicy.MUST_SAVE

        first, second = create_selective_checkpoint_contexts(policy)
        return private.Only(first, products), private.Only(second, products)

    with Count():
        y = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
        runs.append(1)
        before = len(made)
        y.sum().backward()
    assert before == 1
    assert len(made) == 3, "two of the backward, and none to compute the product again"
    expected = torch.autograd.grad(torch.mm(x, weight).sin().sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_linear_layers_in_another_order() -> None:
    x, weight, bias, other = torch.randn(4, 8), torch.randn(6, 8), torch.randn(6), torch.randn(4, 6)
    turned = private.reordered(weight)
    plain = F.linear(x, weight, bias)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(private.linear(x, turned, bias, "none"), plain, **close)
    torch.testing.assert_close(private.linear(x, turned, bias, "relu"), plain.relu(), **close)
    torch.testing.assert_close(private.linear_with(x, other, turned, bias, "add"), plain + other, **close)
    torch.testing.assert_close(private.linear_with(x, other, turned, bias, "mul"), plain * other, **close)


def test_place_and_version_of_memory() -> None:
    tensor, other = torch.zeros(4), torch.zeros(4)
    for each in (tensor, other):
        each.untyped_storage().resize_(0)  # of which both addresses are 0
    places = [private.place_of(each.untyped_storage()) for each in (tensor, tensor[:0], other)]
    assert places[0] == places[1] != places[2]
    tensor = torch.zeros(4)
    before = private.version_of(tensor)
    tensor[:2].add_(1)
    assert private.version_of(tensor) == before + 1


def test_what_is_put_among_a_module_s_parameters_is_used_and_not_registered() -> None:
    module = nn.Linear(2, 2, bias=False)
    own = private.parameters_of(module)
    own["weight"] = nn.Parameter(torch.full((2, 2), 3.0))
    assert module(torch.ones(1, 2)).tolist() == [[6.0, 6.0]]
    assert module.weight is own["weight"]


def test_tensors_are_replaced_one_at_a_time() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    gone: list[weakref.ref[Any]] = []

    def by(tensor: torch.Tensor) -> torch.Tensor:
        assert all(each() is None for each in gone), "what one was is there still"
        gone.append(weakref.ref(tensor.untyped_storage()))
        return torch.zeros_like(tensor)

    private.replace_each(module, by)
    assert len(gone) == len(module.state_dict())
    assert all(not each.any() for each in module.state_dict().values())


def named(rank: int, groups: Groups, argument: None) -> bool:
    assert groups.side is not None
    return private.group_of(groups.side.group_name) is groups.side


def test_a_group_by_its_name(pool: Pool) -> None:
    assert pool.run(named, 2) == [True, True]


def test_the_share_of_activations_that_the_compiler_keeps() -> None:
    import torch._functorch.config as functorch

    before = functorch.activation_memory_budget
    try:
        private.keep_of_activations(0.25)
        assert functorch.activation_memory_budget == 0.25
    finally:
        private.keep_of_activations(before)


def late(rank: int, groups: Groups, argument: None) -> list[float]:
    """Gradients that no hook has reduced."""
    torch.manual_seed(0)
    module = nn.Linear(2, 2, bias=False)
    mesh = dist.device_mesh.DeviceMesh.from_group(groups.side, "cpu")
    fully_shard(module, mesh=mesh)
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    module.set_is_last_backward(False)
    module.set_requires_gradient_sync(False)
    module(torch.full((1, 2), 1.0 + rank)).sum().backward()
    assert module.weight.grad is None, "not yet"
    module.set_is_last_backward(True)
    module.set_requires_gradient_sync(True)
    private.reduce_gradients(module)
    found: list[float] = module.weight.grad.to_local().flatten().tolist()
    return found


def test_gradients_are_reduced_when_it_is_said(pool: Pool) -> None:
    """Each rank has one row; the sum over ranks of 1 and 2."""
    assert pool.run(late, 2) == [[3.0, 3.0], [3.0, 3.0]]
