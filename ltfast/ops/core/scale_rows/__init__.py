"""``matrix *= unit * factor`` in place, row by row: multiplies the gradient that a forward pass stored by the incoming
one. Rows whose product is 1 are neither read nor written, so a plain ``loss.backward()`` costs nothing here.

It runs in backward passes only, and on plain tensors (compilers see a product instead), so it is not a registered op.
"""

from types import ModuleType

from torch import Tensor

from ltfast.ops.core.dispatch import Kernels, kernel_context

__all__ = ["scale_rows_"]


def _native() -> ModuleType:
    from ltfast.ops.core.scale_rows import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.core.scale_rows import triton

    return triton


_KERNELS = Kernels(_native, _triton)


def scale_rows_(matrix: Tensor, factor: Tensor, unit: float, backend: str) -> None:
    """Scale rows in place.

    Args:
        matrix: (B, C), contiguous, any float dtype.
        factor: one value, or one for each row, (B,) or (B, 1); float32, or float64 for a float64 matrix.
        unit: multiplies every factor.
        backend: "native" or "triton": the backend of the forward pass.
    """
    if not len(matrix):
        return
    with kernel_context(matrix.device):
        _KERNELS.of(backend, matrix.device).scale_rows_(matrix, factor.contiguous(), unit)
