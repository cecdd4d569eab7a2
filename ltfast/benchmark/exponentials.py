"""A Triton kernel that does nothing but exponentials, to measure their rate on a GPU."""

import torch
import triton
import triton.language as tl

ROUNDS = 256
_BLOCK, _WARPS = 1024, 4  # 8 exponentials a thread in flight, and few registers: nothing waits for a result


@triton.jit
def _exponentials_kernel(values, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(values + at)
    for _ in range(ROUNDS):
        x = tl.exp2(
            -x
        )  # an instruction of the special-function units, and a negation, of which a GPU does 8 in its time
    tl.store(values + at, x)


def exponentials(values: torch.Tensor) -> None:
    """Replace each value by `ROUNDS` exponentials of it, each of the one before, in registers.

    Args:
        values: a float32 vector on a GPU, a multiple of 1024 long.
    """
    _exponentials_kernel[(values.numel() // _BLOCK,)](values, ROUNDS=ROUNDS, BLOCK=_BLOCK, num_warps=_WARPS)
