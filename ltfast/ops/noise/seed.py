"""The seed of the noise, from a generator of PyTorch."""

import torch
from torch import Tensor

from ltfast.ops.core.torch_internals import is_watched

WORD = 2**64 - 1


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Draw a seed from a generator of PyTorch: int64, shape (1,), not negative.

    Args:
        device: the device of the noise.
        generator: a generator on that device; None for the global one.

    Returns:
        The seed. On a GPU it is drawn on the CPU from the state of the GPU's generator, which takes no launch, and is
        passed to the kernel by value. Inside a CUDA graph, which draws anew at each replay, and in what a compiler
        traces it is drawn on the GPU and stays there. So for a GPU the two have different noise under one seed.
    """
    own = generator is None or generator.device.type == device.type  # otherwise PyTorch raises its own error
    if device.type == "cuda" and own and not _is_recorded():
        return torch.tensor([_advance(generator or default_generator(device))])
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)


def default_generator(device: torch.device) -> torch.Generator:
    """The global generator of a GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def _is_recorded() -> bool:
    """Whether this call will be repeated without Python."""
    return torch.compiler.is_compiling() or is_watched() or torch.cuda.is_current_stream_capturing()


def _advance(generator: torch.Generator) -> int:
    """A seed from the state of a GPU's generator, which moves on by the smallest step that PyTorch allows, 4."""
    offset = generator.get_offset()
    generator.set_offset(offset + 4)
    return mixed(mixed(generator.initial_seed()) ^ offset) >> 1


def mixed(x: int) -> int:
    """The output function of SplitMix64 (Steele et al., OOPSLA 2014) for a step from ``x``: a bijection of 64 bits."""
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)
