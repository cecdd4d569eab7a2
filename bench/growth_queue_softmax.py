"""How ``queue_softmax`` grows with keys, batch and feature width.

python bench/growth_queue_softmax.py queue_softmax_growth.png
"""

import sys
from collections.abc import Callable

import torch
from torch.nn import functional as F

import growth
from ltfast.ops import queue_softmax

BASE = {"keys": 65536, "batch": 256, "width": 128}
RANGES = {
    "keys": [4096, 16384, 65536, 262144, 1048576],
    "batch": [16, 32, 64, 128, 256, 512, 1024, 2048],
    "width": [32, 64, 128, 256, 512],
}


def make_step(keys: int, batch: int, width: int, device: str) -> Callable[[], None]:
    """With the gradient in the queries alone, as for a queue."""
    queries = F.normalize(torch.randn(batch, width, device=device)).requires_grad_()
    queue = F.normalize(torch.randn(keys, width, device=device))
    incoming = torch.rand(batch, device=device)

    def step() -> None:
        queries.grad = None
        queue_softmax(queries, queue)[0].backward(incoming)

    return step


if __name__ == "__main__":
    growth.plot("queue_softmax", BASE, RANGES, make_step, sys.argv[1])
