from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class FixedDtype(nn.Module):
    """A module whose buffers keep their dtype under ``model.half()`` but still move between devices.

    Sums in half precision stop growing, and a queue's dtype is chosen separately.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(lambda tensor: self._move(fn, tensor), recurse)

    @staticmethod
    def _move(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
