r"""The importance of every parameter, the threshold below which a share of them lies, and masks: whole models at once.

To first order, the loss changes by :math:`w\,\partial L / \partial w` when a parameter w is set to zero. The square of
that is its importance (Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019), summed over
batches, or over those of one group of classes (Cong et al., AAAI 2024):

.. math::

    E_w \mathrel{+}= \left(w \, \frac{\partial L}{\partial w}\right)^2

A model has hundreds of tensors, and each function here is one pass over all of them. The threshold is a quantile of
tens of millions of values. It is found by counting the bits of their representation from the highest down: it is exact,
and nothing is sorted, concatenated or read back from a GPU. (``torch.quantile`` refuses more than 16 million values.)

On a GPU the other two functions also exist in CUDA C++, which ``ltfast.backend("native")`` chooses. There the addresses
of the tensors are launch parameters, while the Triton kernels need a table of them on the device.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels, Op
from ltfast.ops.core.torch_internals import is_watched
from ltfast.ops.taylor import reference
from ltfast.ops.taylor.tables import check_apart, flatten, write_back

__all__ = ["apply_masks_", "importance_threshold", "taylor_importance_"]

ACCUMULATORS = (torch.float32, torch.float64)
MASKS = (torch.bool, torch.uint8)


def taylor_importance_(
    accumulators: Sequence[Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """Add (parameter * gradient)^2 to the accumulator, for every tensor of a model.

    Arithmetic is in the dtype of the accumulator. On the CPU the result is bit-for-bit that of the plain loop.

    Args:
        accumulators: float32 or float64, of any shapes and strides; changed in place. No two share memory.
        parameters: one for each accumulator, of its shape, float32, float64, bfloat16 or float16. They may require
            gradients; none is recorded here.
        gradients: as the parameters. The dtypes of all tensors may differ.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """
    accumulators, parameters, gradients = list(accumulators), list(parameters), list(gradients)
    _check_list("accumulators", accumulators, accumulators, ACCUMULATORS, "float32 or float64")
    _check_list("parameters", parameters, accumulators, checks.FLOATS, "float32, float64, bfloat16 or float16")
    _check_list("gradients", gradients, accumulators, checks.FLOATS, "float32, float64, bfloat16 or float16")
    _change(TAYLOR_IMPORTANCE, ("accumulators", accumulators), (parameters, gradients), _update, taylor_op)


def importance_threshold(
    accumulators: Sequence[Tensor], fraction: float, *, masks: Sequence[Tensor] | None = None
) -> Tensor:
    """The k-th smallest of all values, k = round(fraction * N) and at least 1: ``torch.kthvalue`` of all of them.

    The result is exact, also for negative and infinite values. NaN counts as the largest. It takes memory for
    2 % of the values at most.

    Args:
        accumulators: float32 or float64, all of one dtype, of any shapes and strides; N elements in all, 1 or more.
        fraction: in (0, 1]; 0.3 gives the threshold that 30 % of the values do not exceed.
        masks: one for each accumulator, of its shape, bool or uint8 (where all but 0 is True). Only the elements
            where the mask is True count, and N is their number.

    Returns:
        A 0-dim tensor of the accumulators' dtype on their device. Nothing is read back from a GPU, so masks
        without a True element give NaN there.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. N = 0 is invalid.
    """
    accumulators, chosen = list(accumulators), [] if masks is None else list(masks)
    _check_list("accumulators", accumulators, accumulators, ACCUMULATORS, "float32 or float64")
    for i, values in enumerate(accumulators):
        if values.dtype != accumulators[0].dtype:
            raise TypeError(
                f"accumulators[{i}] has dtype {values.dtype}: expected {accumulators[0].dtype}, as the first"
            )
    if masks is not None:
        _check_list("masks", chosen, accumulators, MASKS, "bool or uint8")
    checks.check_real("fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}: expected a number in (0, 1]")
    if not any(values.numel() for values in accumulators):
        raise ValueError("accumulators has no element: expected one or more")
    with torch.no_grad():
        if IMPORTANCE_THRESHOLD.choose(accumulators[0]) == "reference":
            return reference.importance_threshold(accumulators, chosen, float(fraction))
        find = _threshold if _are_plain(accumulators, chosen) else threshold_op
        return find(accumulators, chosen, float(fraction))


def apply_masks_(tensors: Sequence[Tensor], masks: Sequence[Tensor], values: Sequence[Tensor] | None = None) -> None:
    """Where a mask is True, set the tensor to the value, or to 0.

    This freezes parameters (by zeroing their gradients), restores frozen ones after a step of the optimiser, or
    re-initialises the others. Bits are copied unchanged, and other elements keep theirs, including NaN and -0.0.

    Args:
        tensors: real, of any dtypes, shapes and strides; changed in place. No two share memory. They may require
            gradients; none is recorded here.
        masks: one for each tensor, of its shape, bool or uint8 (where all but 0 is True).
        values: one for each tensor, of its shape and dtype.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """
    tensors, masks, replacements = list(tensors), list(masks), [] if values is None else list(values)
    _check_list("tensors", tensors, tensors)
    for i, tensor in enumerate(tensors):
        if tensor.is_complex() or tensor.is_quantized:
            raise TypeError(f"tensors[{i}] has dtype {tensor.dtype}: expected real numbers")
    _check_list("masks", masks, tensors, MASKS, "bool or uint8")
    if values is not None:
        _check_list("values", replacements, tensors)
        for i, (value, tensor) in enumerate(zip(replacements, tensors, strict=True)):
            if value.dtype != tensor.dtype:
                raise TypeError(f"values[{i}] has dtype {value.dtype}: expected {tensor.dtype}, as tensors[{i}]")
    _change(APPLY_MASKS, ("tensors", tensors), (masks, replacements), _apply, apply_op)


def _check_list(
    name: str,
    tensors: Sequence[Tensor],
    leads: Sequence[Tensor],
    dtypes: Sequence[torch.dtype] | None = None,
    expected: str = "",
) -> None:
    """A list of tensors, each with the shape and device of its lead."""
    if len(tensors) != len(leads):
        raise ValueError(f"{name} has length {len(tensors)}: expected {len(leads)}, one for each of the others")
    device = leads[0].device if leads and isinstance(leads[0], Tensor) else None
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}[{i}] is a {type(tensor).__name__}: expected a tensor")
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name}[{i}] has layout {tensor.layout}: expected a dense tensor")
        if dtypes is not None and tensor.dtype not in dtypes:
            raise TypeError(f"{name}[{i}] has dtype {tensor.dtype}: expected {expected}")
        if tensor.shape != leads[i].shape:
            raise ValueError(f"{name}[{i}] has shape {tuple(tensor.shape)}: expected {tuple(leads[i].shape)}")
        if tensor.device != device:
            raise ValueError(f"{name}[{i}] is on {tensor.device}: expected the device of the others, {device}")


def _are_plain(*lists: Sequence[Tensor]) -> bool:
    """Whether all tensors are plain; see ``torch_internals.is_plain``, which does not accept parameters."""
    return (
        not torch.compiler.is_compiling()
        and not is_watched()
        and {type(tensor) for tensors in lists for tensor in tensors} <= {Tensor, torch.nn.Parameter}
    )


def _change(
    op: Op, changed: tuple[str, list[Tensor]], others: tuple[list[Tensor], ...], run: Callable, registered: Callable
) -> None:
    """Run a function that changes tensors in place: the reference, or the kernels, bypassing PyTorch's dispatcher if
    possible."""
    name, tensors = changed
    if not tensors:
        return
    with torch.no_grad():
        eager = _are_plain(tensors, *others)
        if op.choose(tensors[0]) == "reference":
            if eager:
                check_apart(name, tensors)
            op.reference(tensors, *others)
        elif eager:
            run(tensors, *others)
            torch.autograd.graph.increment_version(tensors)
        else:
            registered(tensors, *others)


def _native() -> ModuleType:
    from ltfast.ops.taylor import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.taylor import triton

    return triton


def _cuda() -> ModuleType:
    from ltfast.ops.taylor import cuda

    return cuda


_KERNELS = Kernels(_native, _triton, _cuda)
TAYLOR_IMPORTANCE = Op("taylor_importance_", reference.taylor_importance_, _KERNELS)
APPLY_MASKS = Op("apply_masks_", reference.apply_masks_, _KERNELS)
IMPORTANCE_THRESHOLD = Op("importance_threshold", reference.importance_threshold, Kernels(_native, _triton))


def _kernels(op: Op, device: torch.device) -> ModuleType:
    return op.kernels.of(op.resolve(device), device)


@TAYLOR_IMPORTANCE.guarded
def _update(accumulators: Sequence[Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    check_apart("accumulators", accumulators)
    lists = flatten(accumulators, parameters, gradients)
    _kernels(TAYLOR_IMPORTANCE, accumulators[0].device).taylor_importance_(*lists)
    write_back(accumulators, lists[0])


@IMPORTANCE_THRESHOLD.guarded
def _threshold(accumulators: Sequence[Tensor], masks: Sequence[Tensor], fraction: float) -> Tensor:
    lists = flatten(accumulators, *([masks] if masks else []))
    return _kernels(IMPORTANCE_THRESHOLD, accumulators[0].device).importance_threshold(fraction, *lists)


@APPLY_MASKS.guarded
def _apply(tensors: Sequence[Tensor], masks: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    check_apart("tensors", tensors)
    lists = flatten(tensors, masks, *([values] if values else []))
    _kernels(APPLY_MASKS, tensors[0].device).apply_masks_(*lists)
    write_back(tensors, lists[0])


# the schemas are written out: PyTorch 2.6 cannot read collections.abc.Sequence
taylor_op = torch.library.custom_op(
    "ltfast::taylor_importance_",
    _update,
    mutates_args=("accumulators",),
    schema="(Tensor(a0!)[] accumulators, Tensor[] parameters, Tensor[] gradients) -> ()",
)
threshold_op = torch.library.custom_op(
    "ltfast::importance_threshold",
    _threshold,
    mutates_args=(),
    schema="(Tensor[] accumulators, Tensor[] masks, float fraction) -> Tensor",
)
apply_op = torch.library.custom_op(
    "ltfast::apply_masks_",
    _apply,
    mutates_args=("tensors",),
    schema="(Tensor(a0!)[] tensors, Tensor[] masks, Tensor[] values) -> ()",
)


@taylor_op.register_fake
def _(accumulators: Sequence[Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    pass


@threshold_op.register_fake
def _(accumulators: Sequence[Tensor], masks: Sequence[Tensor], fraction: float) -> Tensor:
    return accumulators[0].new_empty(())


@apply_op.register_fake
def _(tensors: Sequence[Tensor], masks: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    pass
