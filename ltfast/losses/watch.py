"""Warnings about inputs with the right shape but the wrong meaning: logits instead of cosines, or features that are not
normalised. Training on them raises no error but gives poor results."""

import torch
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.core.torch_internals import is_plain
from ltfast.ops.core.warn import warn_caller

_EVERY = 64
ENOUGH_KEYS = 1024  # number of queued keys to check


class Watch:
    """Decides when a loss checks the values of its input, and warns once.

    It checks calls 1, 2, 4, ..., 64 and every 64th call after that, until it has warned. It skips calls under
    compilation or inside ``torch.func``, empty tensors, and tensors on a GPU, since reading them synchronises. With
    ``LTFAST_CHECKS=1`` it checks every call, on GPUs too, except during the capture of a CUDA graph.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.warned = False

    def due(self, tensor: Tensor) -> bool:
        """Count the call, and return whether to check the values of this call."""
        if torch.compiler.is_compiling() or self.warned:
            return False
        self.calls += 1
        if self.calls & (self.calls - 1 if self.calls < _EVERY else _EVERY - 1) and not checks.CHECK_VALUES:
            return False
        if tensor.is_cuda and (not checks.CHECK_VALUES or torch.cuda.is_current_stream_capturing()):
            return False
        return is_plain(tensor) and tensor.numel() > 0

    def warn(self, message: str) -> None:
        """Warn at the user's call of the loss, outside ltfast and PyTorch."""
        self.warned = True
        warn_caller(message)

    def cosines(self, loss: str, name: str, cosine: Tensor) -> None:
        """Warn about a finite value outside [-1, 1]."""
        limit = 1 + _tolerance(cosine.dtype)
        cosine = cosine.detach()
        low, high = torch.aminmax(cosine)
        if low.item() >= -limit and high.item() <= limit:
            return
        size = cosine.abs().masked_fill(~cosine.isfinite(), 0).amax().item()
        if size > limit:
            self.warn(
                f"{loss}: {name} has a value of size {size:.3g}; expected cosines, in [-1, 1], which the loss "
                "multiplies by its scale. Training on plain logits gives poor results: make the last layer an "
                "ltfast.models.CosineClassifier, or use LogitAdjustedLoss, which takes logits"
            )

    def lengths(self, loss: str, **features: Tensor) -> None:
        """Warn about a finite row of (..., D) whose length is not 1. Rows of zeros are unused slots of a queue."""
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
    """Allows for rounding, including that of earlier operations in lower precision."""
    return max(0.01, 4 * torch.finfo(dtype).eps)
