r"""Squared error of logits and one-hot labels: :math:`L_i = \sum_c (x_{ic} - s [c = y_i])^2`.

The smallest op that there can be. ``tests/ops/test_new_op.py`` adds it to a copy of the package.
"""

from types import ModuleType

from ltfast.ops.squared_error import reference
from ltfast.ops.squared_error.settings import SquaredErrorSettings
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels
from ltfast.ops.core.fused_loss import HALF_BOUND, FusedLoss

__all__ = ["squared_error"]


def squared_error(
    logits: Tensor, target: Tensor, *, scale: float = 1.0, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Squared error of (B, C) logits and (B,) labels in [0, C); see the module's docstring for the formula."""
    checks.check_logits(logits)
    checks.check_labels(target, logits, ignore_index=ignore_index)
    checks.check_positive("scale", scale)
    checks.check_reduction(reduction)
    return SQUARED_ERROR(logits, target, SquaredErrorSettings(scale, ignore_index, reduction))


def _native() -> ModuleType:
    from ltfast.ops.squared_error import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.squared_error import triton

    return triton


SQUARED_ERROR = FusedLoss(
    "squared_error",
    reference.squared_error,
    Kernels(_native, _triton),
    "Tensor logits, Tensor target",
    SquaredErrorSettings,
    bound=lambda logits, others, settings: HALF_BOUND,
)
