"""Warnings about inputs of the right shape that are not what a loss is for: plain logits where it needs cosines,
features that are not normalised. A training on them raises nothing, and ends badly."""

import torch
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.core.torch_internals import is_plain
from ltfast.ops.core.warn import warn_caller

_EVERY = 64
ENOUGH_KEYS = 1024  # of a queue, to look at


class Watch:
    """Decides when a loss looks at the values of its input, and warns once.

    It looks at calls 1, 2, 4, ..., 64 and at each 64th after that, until it has warned. It never looks while a compiler
    traces, inside ``torch.func``, or at tensors on a GPU, where reading waits for what is queued. ``LTFAST_CHECKS=1``
    makes it look at every call, on GPUs too, but for the capture of a CUDA graph.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.warned = False

    def due(self, tensor: Tensor) -> bool:
        """Whether to look at the values now; counts the call."""
        if torch.compiler.is_compiling() or self.warned:
            return False
        self.calls += 1
        if self.calls & (self.calls - 1 if self.calls < _EVERY else _EVERY - 1) and not checks.CHECK_VALUES:
            return False
        if tensor.is_cuda and (not checks.CHECK_VALUES or torch.cuda.is_current_stream_capturing()):
            return False
        return is_plain(tensor)

    def warn(self, message: str) -> None:
        """Warn where the loss was called, outside of ltfast and PyTorch."""
        self.warned = True
        warn_caller(message)

    def cosines(self, loss: str, name: str, cosine: Tensor) -> None:
        """Warn of a finite value outside [-1, 1]."""
        limit = 1 + _tolerance(cosine.dtype)
        cosine = cosine.detach()
        low, high = torch.aminmax(cosine)
        if low.item() >= -limit and high.item() <= limit:
            return
        size = cosine.abs().masked_fill(~cosine.isfinite(), 0).amax().item()
        if size > limit:
            self.warn(
                f"{loss}: {name} has a value of size {size:.3g}; expected cosines, in [-1, 1], which the loss "
                "multiplies by its scale. Plain logits ruin the training: make the last layer an "
                "ltfast.models.CosineClassifier, or take LogitAdjustedLoss, which is for logits"
            )

    def lengths(self, loss: str, **features: Tensor) -> None:
        """Warn of a finite row, (..., D), that is not of length 1; a row of zeros is an empty place."""
        for name, rows in features.items():
            lengths = torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=accumulator(rows.dtype)).flatten()
            off = (lengths - 1).abs()
            off = off.masked_fill(~off.isfinite() | (lengths == 0), 0)
            worst = int(off.argmax())
            if off[worst].item() > _tolerance(rows.dtype):
                return self.warn(
                    f"{loss}: {name} has a row of length {lengths[worst].item():.3g}; expected rows of length 1, from "
                    "torch.nn.functional.normalize(..., dim=-1)"
                )


def _tolerance(dtype: torch.dtype) -> float:
    """For rounding, that of products in lower precision before it included."""
    return max(0.01, 4 * torch.finfo(dtype).eps)
