"""``matrix *= unit * factor`` in place, row by row: how a gradient that a forward pass left behind meets the incoming
one. Rows whose product is 1 are neither read nor written, so a plain ``loss.backward()`` costs nothing here.

It runs in backward passes alone and on plain tensors (compilers see a product instead), so it is no registered op.
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
        factor: one value, or (B,) or (B, 1), a value a row; float32, or float64 for a float64 matrix.
        unit: multiplies every factor.
        backend: "native" or "triton": what the forward pass ran.
    """
    with kernel_context(matrix.device):
        _KERNELS.of(backend, matrix.device).scale_rows_(matrix, factor.contiguous(), unit)
