"""Random vectors."""

import torch
from torch import Tensor
from torch.nn import functional as F


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Vectors of length 1 along the last dimension of the shape."""
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)
