r"""Softmax over a memory queue. The contrastive losses of MoCo, supervised and decoupled contrastive losses, and patch
self-distillation need nothing else of the queue. With queries :math:`q_i` and keys :math:`k_t`,

.. math::

    \mathrm{lse}_i = \log \sum_t e^{q_i \cdot k_t / \tau}, \qquad
    \mathrm{mean}_i = \sum_t p_{it} k_t, \quad p_{it} = e^{q_i \cdot k_t / \tau - \mathrm{lse}_i}

This is attention with the keys as values, so no B x M matrix is needed, and
:math:`\partial\, \mathrm{lse}_i / \partial q_i = \mathrm{mean}_i / \tau`: the backward pass over the queue is free.
If the keys have a gradient, it is :math:`\partial\, \mathrm{lse}_i / \partial k_t = p_{it} q_i / \tau`, a second pass.

On a GPU, a program holds whole rows of queries if they fit: bfloat16 and float16 up to 512 columns (256 on NVIDIA's
chips other than sm_80, sm_90 and sm_100, 128 on AMD's), float32 and float64 up to 128. For wider rows, several programs
share the columns of the mean, and each of them computes all products again.

Online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
"FlashAttention", NeurIPS 2022.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels, Op
from ltfast.ops.core.tensors import accumulator, wants_gradient
from ltfast.ops.core.torch_internals import is_plain, version
from ltfast.ops.queue_softmax import reference

__all__ = ["merge", "queue_softmax"]


def queue_softmax(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float = 0.07,
    valid: int | Tensor | None = None,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the keys, and the keys' softmax-weighted mean; see the module's docstring for the formula.

    Args:
        queries: (B, D), float32, float64, bfloat16 or float16. Any strides. Under autocast they are cast to its dtype.
        keys: (M, D), any float dtype, M may be 0. On a GPU the products are computed in the dtype of the queries
            and summed in float32: bfloat16 and float16 on tensor cores, float32 as three TF32 products (as one with
            ``torch.backends.cuda.matmul.allow_tf32``). On a CPU they are computed in float32 or float64.
        temperature: tau, positive.
        valid: only the first ``valid`` keys count; None means all. As an integer tensor of shape () on the queries'
            device it may change from call to call without compiling or capturing anew.
        exclude: (B,), integers: the key that each row excludes, or -1.

    Returns:
        lse (B,), float32, or float64 for float64 queries: differentiable in queries and keys. -inf for a row without
        keys. The mean (B, D), of the same dtype, 0 for a row without keys. No gradient flows through the mean. Both are
        NaN where the query is. Products that overflow the dtype are not detected.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. A key out of range excludes nothing.
    """
    _check(queries, keys, temperature, valid, exclude)
    if valid is not None and not isinstance(valid, Tensor):
        keys, valid = keys[:valid], None
    if torch.is_autocast_enabled(queries.device.type) and queries.dtype == torch.float32:
        queries = queries.to(torch.get_autocast_dtype(queries.device.type))
    backend = QUEUE_SOFTMAX.choose(queries, keys)
    arguments = (queries, keys, temperature, valid, exclude)
    if backend == "reference":
        lse, mean = reference.queue_softmax(*arguments)
    elif torch.compiler.is_compiling() or not (is_plain(queries) and is_plain(keys)):
        lse, mean = queue_softmax_op(*arguments)
    elif wants_gradient(queries) or wants_gradient(keys):
        lse, mean = _Eager.apply(*arguments, backend)
    else:
        lse, mean = _run(*arguments, backend)
    return lse, mean.detach()


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The (lse, mean) over the keys of both arguments, from the (lse, mean) over each; differentiable in lse."""
    lse = torch.logaddexp(first[0], second[0])
    # exp(first - lse) would carry the rounding of lse: the shares would not add up to 1
    share = torch.sigmoid(first[0].detach() - second[0].detach()).where(~lse.isneginf(), 0)
    return lse, torch.lerp(second[1], first[1], share[:, None])


def _check(
    queries: Tensor, keys: Tensor, temperature: float, valid: int | Tensor | None, exclude: Tensor | None
) -> None:
    checks.check_matrix(queries, "queries", "(batch, width)")
    if not isinstance(keys, Tensor):
        raise TypeError(f"keys is a {type(keys).__name__}: expected a tensor")
    if keys.dim() != 2 or keys.shape[1] != queries.shape[1]:
        raise ValueError(f"keys has shape {tuple(keys.shape)}: expected (keys, {queries.shape[1]}), the queries' width")
    if keys.dtype not in checks.FLOATS:
        raise TypeError(f"keys has dtype {keys.dtype}: expected float32, float64, bfloat16 or float16")
    if keys.device != queries.device:
        raise ValueError(f"keys is on {keys.device}: expected the device of the queries, {queries.device}")
    checks.check_positive("temperature", temperature)
    if isinstance(valid, Tensor):
        if valid.shape != () or valid.dtype not in checks.INTEGERS or valid.device != queries.device:
            got = f"{valid.dtype}, shape {tuple(valid.shape)}, on {valid.device}"
            raise ValueError(f"valid is a tensor of {got}: expected integers, shape (), on {queries.device}")
    elif valid is not None:
        checks.check_integer("valid", valid)
        if not 0 <= valid <= len(keys):
            raise ValueError(f"valid is {valid}: expected 0 to {len(keys)}, the number of keys")
    if exclude is not None:
        if not isinstance(exclude, Tensor) or exclude.dtype not in checks.INTEGERS:
            kind = exclude.dtype if isinstance(exclude, Tensor) else type(exclude).__name__
            raise TypeError(f"exclude is of {kind}: expected a tensor of integers, one key per row")
        if exclude.shape != queries.shape[:1]:
            raise ValueError(f"exclude has shape {tuple(exclude.shape)}: expected ({len(queries)},), one key per row")
        if exclude.device != queries.device:
            raise ValueError(f"exclude is on {exclude.device}: expected the device of the queries, {queries.device}")


def _native() -> ModuleType:
    from ltfast.ops.queue_softmax import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.queue_softmax import triton

    return triton


QUEUE_SOFTMAX = Op("queue_softmax", reference.queue_softmax, Kernels(_native, _triton))


@QUEUE_SOFTMAX.guarded
def _run(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    valid: Tensor | None,
    exclude: Tensor | None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    backend = backend or QUEUE_SOFTMAX.resolve(queries.device)
    kernels = QUEUE_SOFTMAX.kernels.of(backend, queries.device)
    return kernels.queue_softmax(queries, keys, temperature, _long(valid), _long(exclude))


queue_softmax_op = torch.library.custom_op(
    "ltfast::queue_softmax",
    _run,
    mutates_args=(),
    schema="(Tensor queries, Tensor keys, float temperature, Tensor? valid, Tensor? exclude) -> (Tensor, Tensor)",
)


@queue_softmax_op.register_fake
def _(
    queries: Tensor, keys: Tensor, temperature: float, valid: Tensor | None, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(queries.dtype)
    return queries.new_empty(len(queries), dtype=dtype), queries.new_empty(queries.shape, dtype=dtype)


@QUEUE_SOFTMAX.guarded
def _key_gradient(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    valid: Tensor | None,
    exclude: Tensor | None,
    lse: Tensor,
    incoming: Tensor,
    backend: str,
) -> Tensor:
    """The gradient of sum(incoming * lse) in the keys: (M, D), of the dtype of the keys."""
    arguments = (queries, keys, temperature, _long(valid), _long(exclude), lse, incoming.contiguous())
    return QUEUE_SOFTMAX.kernels.of(backend, queries.device).key_gradient(*arguments).to(keys.dtype)


key_gradient_op = torch.library.custom_op("ltfast::queue_softmax_key_gradient", _key_gradient, mutates_args=())


@key_gradient_op.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    valid: Tensor | None,
    exclude: Tensor | None,
    lse: Tensor,
    incoming: Tensor,
    backend: str,
) -> Tensor:
    return keys.new_empty(keys.shape)


def _long(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.long().contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, inputs, output, QUEUE_SOFTMAX.resolve(inputs[0].device))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor], backend: str) -> None:
    """Save what the backward pass needs."""
    queries, keys, ctx.temperature, valid, exclude = inputs
    ctx.backend = backend
    # A queue takes in this step's keys before its backward pass, which needs the mean alone, not the queue as it was.
    ctx.queue = None if keys.requires_grad else (keys, version(keys))
    # a queue's count moves on with it: what counted in this step is kept
    count = None if valid is None else valid.clone()
    ctx.save_for_backward(queries, keys if keys.requires_grad else None, count, exclude, *output)


def _backward(ctx: Any, grad_lse: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    queries, keys, valid, exclude, lse, mean = ctx.saved_tensors
    rest = (ctx.temperature, valid, exclude)
    of_queries, of_keys = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # create_graph=True
        if ctx.queue is not None:
            keys, seen = ctx.queue
            if version(keys) != seen:
                raise RuntimeError("keys changed in place since the forward pass, and create_graph=True needs them")
        again, _ = reference.queue_softmax(queries, keys, *rest)
        wanted = [x for x, needed in ((queries, of_queries), (keys, of_keys)) if needed]
        with torch.autocast(queries.device.type, enabled=False):
            found = iter(torch.autograd.grad(again, wanted, grad_lse, create_graph=True))
        return next(found) if of_queries else None, next(found) if of_keys else None, None, None, None
    for_queries = (mean * (grad_lse / ctx.temperature)[:, None]).to(queries.dtype) if of_queries else None
    # past PyTorch's dispatcher where nobody watches it, as in the forward pass
    of = _key_gradient if is_plain(queries) and is_plain(grad_lse) else key_gradient_op
    for_keys = of(queries, keys, *rest, lse, grad_lse, ctx.backend) if of_keys else None
    return for_queries, for_keys, None, None, None


class _Eager(torch.autograd.Function):
    """The op past PyTorch's dispatcher, which takes longer than a small batch."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *arguments, backend = inputs
        output = _run(*arguments, backend)
        _save(ctx, tuple(arguments), output, backend)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad_lse: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return (None,) * 6 if grad_lse is None else (*_backward(ctx, grad_lse, None), None)


queue_softmax_op.register_autograd(_backward, setup_context=_setup)
