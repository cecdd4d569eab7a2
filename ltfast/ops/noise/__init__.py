"""Clipped half-normal noise from a counter: the cloud of ``agcl``.

``|e|`` with ``e ~ N(0, 1/3)`` clipped to [-1, 1]. Element (i, c) is computed from word ``c % 4`` of
Philox 4x32-10 (Salmon et al., SC 2011) at counter ``(c // 4, i, i >> 32, 0)`` under a 64-bit seed, so every
kernel can draw any element by itself, and one seed gives one cloud on every backend.
"""

import torch

from ltfast.ops.noise.reference import half_normal

__all__ = ["draw_seed", "half_normal"]


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw a seed from a generator of PyTorch: int64, shape (1,), on ``device``.

    It stays on the device, so that drawing neither synchronises a GPU nor breaks a CUDA graph.
    """
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)
