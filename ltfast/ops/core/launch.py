"""What the launch settings of all kernels share. Each op chooses its own in its ``launch.py``.

A launch is chosen by a pure function of shapes, dtypes and the chip. Each number has its reason beside it: measured
(with the chip), counted (in the machine code, by compiling for a GPU that is not here), or not measured.
"""

import functools
import math
from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(frozen=True)
class Chip:
    """The GPU that a kernel is launched on.

    Attributes:
        maker: "nvidia" or "amd".
        multiprocessors: the number of streaming multiprocessors (AMD: compute units). 0 for Triton's interpreter.
        name: as PyTorch calls it; "" for Triton's interpreter.
        capability: NVIDIA's compute capability times ten: 80, 90, 100. 0 for AMD and for Triton's interpreter.
    """

    maker: str
    multiprocessors: int
    name: str = ""
    capability: int = 0

    @property
    def has_ptx(self) -> bool:
        """Whether a kernel may contain NVIDIA's own instructions. Triton's interpreter knows none of them."""
        return self.maker == "nvidia" and self.multiprocessors > 0


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """The chip behind a device of PyTorch. For "cpu" it is Triton's interpreter, which stands for a chip of NVIDIA."""
    if device.type != "cuda":
        return Chip("nvidia", 0)
    properties = torch.cuda.get_device_properties(device)
    maker, capability = "nvidia", 10 * properties.major + properties.minor
    if torch.version.hip:
        maker, capability = "amd", 0
    return Chip(maker, properties.multi_processor_count, properties.name, capability)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a kernel is launched. A subclass adds the constants of its kernel, each under its name in lower case.

    Attributes:
        num_warps: warps of a program.
        maxnreg: the largest number of registers of a thread, or None for no limit; see ``register_limit``.
    """

    num_warps: int
    maxnreg: int | None = None

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the launch."""
        own = {field.name for field in fields(Launch)}
        constants = {field.name.upper(): getattr(self, field.name) for field in fields(self) if field.name not in own}
        limit = {} if self.maxnreg is None else {"maxnreg": self.maxnreg}
        return {**constants, "num_warps": self.num_warps, **limit}


def register_limit(count: int, chip: Chip) -> int | None:
    """``Launch.maxnreg`` for at most ``count`` registers. AMD's compiler has no such limit.

    Without a limit, NVIDIA's compiler may spill a few registers in order to fit one more block on a multiprocessor.
    With a limit, it uses as many as it needs up to there. All limits are counted: no launch of
    ``bench/count_kernels.py`` spills with them. Their effect on the speed is not measured.
    """
    return None if chip.maker == "amd" else count


def vector_width(dtype: torch.dtype, *strides: int) -> int:
    """The elements of the widest aligned access, 16 bytes at most, to rows that start at multiples of the strides.

    A kernel takes this width as a constant ``WIDTH`` and each stride divided by it, and multiplies them again: so the
    compiler knows that the stride is divisible. (It ignores ``tl.multiple_of`` of an argument.)
    """
    return math.gcd(16 // dtype.itemsize, *strides)
