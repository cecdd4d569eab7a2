"""Argument checks that the ops share. They do not read the values of a tensor, so they never synchronise a GPU.

``LTFAST_CHECKS=1`` adds those that must: labels on a GPU. (On a CPU labels are always checked; in Triton's kernels a
label out of range makes that row's loss and gradient NaN.)
"""

import math
import os

import torch
from torch import Tensor

from ltfast.ops.core.torch_internals import unwrapped

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
CHECK_VALUES = os.environ.get("LTFAST_CHECKS") == "1"


def check_logits(logits: Tensor, name: str = "logits") -> None:
    """Check for a matrix of logits, which may have no rows."""
    check_matrix(logits, name, "(batch, classes)", fewest_rows=0)


def check_matrix(logits: Tensor, name: str, shape: str, *, fewest_rows: int = 1) -> None:
    """Check for a matrix of floating-point numbers that is not empty, or has 0 rows if ``fewest_rows`` is 0; ``shape``
    names its sides in the message."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} is a {type(logits).__name__}: expected a tensor")
    if logits.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(logits.shape)}: expected {shape}")
    if logits.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {logits.dtype}: expected float32, float64, bfloat16 or float16")
    if logits.shape[1] == 0 or (fewest_rows and logits.shape[0] == 0):
        expected = f"{shape}, none of them 0" if fewest_rows else f"{shape}, the latter not 0"
        raise ValueError(f"{name} has shape {tuple(logits.shape)}: expected {expected}")


def check_classes(logits: Tensor, classes: int, name: str = "logits") -> None:
    """Check for one column for each class count of a loss. Leaves anything but a matrix to ``check_logits``."""
    if isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[1] != classes:
        shape = tuple(logits.shape)
        raise ValueError(f"{name} has shape {shape}: expected (batch, {classes}), a column for each of class_counts")


def check_labels(
    target: Tensor,
    logits: Tensor,
    name: str = "target",
    *,
    classes: int | None = None,
    ignore_index: int | None = None,
) -> None:
    """Check for integer labels, one for each row; ``classes`` is their number if it differs from the columns."""
    if ignore_index is not None:
        check_integer("ignore_index", ignore_index)
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} is a {type(target).__name__}: expected a tensor of integer labels")
    if target.dtype not in INTEGERS:
        raise TypeError(f"{name} has dtype {target.dtype}: expected integer labels")
    if target.shape != logits.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(target.shape)}: expected ({logits.shape[0]},), one label per row")
    check_device(target, logits, name)
    if CHECK_VALUES and not torch.compiler.is_compiling():
        check_label_values(target, logits.shape[1] if classes is None else classes, name, ignore_index)


def check_label_values(target: Tensor, num_classes: int, name: str = "target", ignore_index: int | None = None) -> None:
    """Read the labels and refuse any outside [0, num_classes), except ``ignore_index``. Inside ``vmap`` the labels of
    the whole batch are read."""
    target = unwrapped(target).long()  # uint8 would wrap num_classes
    wrong = (target < 0) | (target >= num_classes)
    bad = (wrong if ignore_index is None else wrong & (target != ignore_index)).nonzero()
    if bad.numel():
        place = tuple(map(int, bad[0]))  # before PyTorch 2.11, tolist() fails inside a transform of torch.func
        label = int(target[place])
        raise ValueError(f"{name}[{', '.join(map(str, place))}] is {label}: expected a label in [0, {num_classes})")


def check_device(tensor: Tensor, logits: Tensor, name: str) -> None:
    if tensor.device != logits.device:
        raise ValueError(f"{name} is on {tensor.device}: expected the device of the logits, {logits.device}")


def check_class_vector(vector: Tensor | None, logits: Tensor, name: str, *, differentiable: bool = False) -> None:
    """Check for a vector with one value for each class, which has no gradient unless it is ``differentiable``."""
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name} is a {type(vector).__name__}: expected a tensor with one value per class")
    if vector.shape != logits.shape[1:]:
        raise ValueError(f"{name} has shape {tuple(vector.shape)}: expected ({logits.shape[1]},), one value per class")
    if vector.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {vector.dtype}: expected floating-point values")
    check_device(vector, logits, name)
    if vector.requires_grad and not differentiable and torch.is_grad_enabled():
        raise ValueError(f"{name} requires a gradient, which this loss does not give: expected {name}.detach()")


def check_class_weight(weight: Tensor | None, num_classes: int) -> None:
    """Check the argument ``weight`` of a loss's constructor: None, or a weight for each class."""
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight is a {type(weight).__name__}: expected a tensor with one value per class")
    check_class_vector(weight, weight.new_empty(1, num_classes), "weight", differentiable=True)


def check_real(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {value!r}: expected a number")


def check_integer(name: str, value: int) -> None:
    if not isinstance(value, int) and not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}: expected an integer")


def check_number(name: str, value: float, *, at_least: float = -math.inf) -> None:
    check_real(name, value)
    if not (-math.inf < value < math.inf and value >= at_least):
        expected = "a finite number" if at_least == -math.inf else f"a finite number of {at_least} or more"
        raise ValueError(f"{name} is {value}: expected {expected}")


def check_positive(name: str, value: float) -> None:
    check_real(name, value)
    if not 0 < value < math.inf:  # math.isfinite does not take the symbolic numbers of torch.compile
        raise ValueError(f"{name} is {value}: expected a number over 0")


def check_label_smoothing(value: float) -> None:
    check_real("label_smoothing", value)
    if not 0 <= value < 1:
        raise ValueError(f"label_smoothing is {value}: expected a number in [0, 1)")


def check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}: expected 'none', 'mean' or 'sum'")


def check_reference_labels(
    target: Tensor, num_classes: int, name: str = "target", ignore_index: int | None = None
) -> None:
    """Check the labels where the reference runs instead of a CPU kernel, which checks them itself."""
    if type(target) is Tensor and target.device.type == "cpu" and not torch.compiler.is_compiling():
        check_label_values(target, num_classes, name, ignore_index)


def check_probabilities(target: Tensor, logits: Tensor, name: str = "target") -> None:
    """Check for a dense soft target."""
    if target.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {target.dtype}: expected floating-point probabilities")
    if target.shape != logits.shape:
        raise ValueError(f"{name} has shape {tuple(target.shape)}: expected {tuple(logits.shape)}, as the logits")
    if target.requires_grad:
        raise ValueError(f"{name} requires a gradient: the loss is differentiated in the logits only")
    check_device(target, logits, name)
