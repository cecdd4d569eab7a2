"""The definition of the noise in plain PyTorch (64-bit integers stand in for 32-bit words)."""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
ROUNDS = 7  # the fewest that pass the tests of Salmon et al.

# |e| = sqrt(2) / 3 erfinv(u) = u P(-log(1 - u^2) - 2.6), P a minimax polynomial with an error of 9.2e-8. Above 3
# standard deviations u P stays above 1, so that clipping needs no case of its own.
COEFFICIENTS = (
    7.19377554e-1,
    1.15856440e-1,
    -2.139863171e-3,
    -5.50142172e-4,
    1.01187332e-4,
    -2.9936724e-6,
    -1.3869884e-6,
    1.6844673e-7,
)


def philox(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: Tensor, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32: four words for each counter, as int64 in [0, 2^32)."""
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(rounds):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # the low 64 bits are right whatever the sign
        c0, c1, c2, c3 = ((b >> 32) & WORD) ^ c1 ^ k0, b & WORD, ((a >> 32) & WORD) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def half_normal(rows: int, columns: int, seed: Tensor, first: int = 0, first_row: int = 0) -> Tensor:
    """``|e|`` for ``e ~ N(0, 1/3)`` clipped to [-1, 1].

    Args:
        rows, columns: the shape.
        seed: int64, shape (1,); its device is the result's.
        first, first_row: the column and the row to begin with.

    Returns:
        float32, shape (rows, columns).
    """
    row = torch.arange(first_row, first_row + rows, device=seed.device)[:, None]
    counter = torch.arange(first // 8, (first + columns + 7) // 8, device=seed.device)[None, :]
    counter, row = torch.broadcast_tensors(counter, row)
    words = philox(counter, row & WORD, row >> 32, torch.zeros_like(row), seed)
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1)
    half = halves.reshape(rows, -1)[:, first % 8 : first % 8 + columns]
    rest = (half.float() + 0.5) * 2.0**-16  # 1 - u, in the middle of its interval
    u = 1 - rest
    x = -torch.log(rest * (1 + u)) - 2.6
    p = torch.full_like(x, COEFFICIENTS[-1])
    for coefficient in reversed(COEFFICIENTS[:-1]):
        p = p * x + coefficient
    return (u * p).clamp(max=1.0)
