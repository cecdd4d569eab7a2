"""How ``vmf_cross_entropy`` grows with batch, classes and feature width.

python bench/growth_vmf.py vmf_growth.png
"""

import sys
from collections.abc import Callable

import torch
from torch.nn import functional as F

import growth
from ltfast.ops import vmf_cross_entropy

BASE = {"batch": 256, "classes": 1000, "width": 128}
RANGES = {
    "batch": [64, 128, 256, 512, 1024, 2048],
    "classes": [250, 500, 1000, 2000, 4000, 8000, 16000],
    "width": [32, 64, 128, 256, 512, 1024],
}


def make_step(batch: int, classes: int, width: int, device: str) -> Callable[[], None]:
    features = F.normalize(torch.randn(batch, width, device=device)).requires_grad_()
    directions = F.normalize(torch.randn(classes, width, device=device))
    kappa, target = 1000 * torch.rand(classes, device=device), torch.randint(classes, (batch,), device=device)

    def step() -> None:
        features.grad = None
        vmf_cross_entropy(features, target, directions, kappa).backward()

    return step


if __name__ == "__main__":
    growth.plot("vmf_cross_entropy", BASE, RANGES, make_step, sys.argv[1])
