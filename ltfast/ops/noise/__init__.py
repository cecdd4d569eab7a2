"""Clipped half-normal noise from a counter: the cloud of ``agcl``.

``|e|`` with ``e ~ N(0, 1/3)`` clipped to [-1, 1]. Element (i, c) is computed from a 16-bit half of word
``c % 8 // 2`` of Philox 4x32-7 (Salmon et al., SC 2011) at counter ``(c // 8, i, i >> 32, 0)`` under a 64-bit seed:
the low half for even c. So every kernel can draw any element by itself, and one seed gives one cloud on every backend.
The noise takes 65,360 values, the quantiles of the middles of 2^16 equal intervals; its mean and variance differ from
the exact ones by less than 1e-9.
"""

from ltfast.ops.noise.reference import half_normal
from ltfast.ops.noise.seed import draw_seed

__all__ = ["draw_seed", "half_normal"]
