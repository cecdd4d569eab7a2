"""How ``vmf_cross_entropy`` grows with batch, classes and feature width: forward and backward, a line a dimension.

python bench/growth_vmf.py vmf_growth.png
"""

import sys

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from conftest import machine
from ltfast.ops import vmf_cross_entropy

BASE = {"batch": 256, "classes": 1000, "width": 128}
RANGES = {
    "batch": [64, 128, 256, 512, 1024, 2048],
    "classes": [250, 500, 1000, 2000, 4000, 8000, 16000],
    "width": [32, 64, 128, 256, 512, 1024],
}


def milliseconds(batch: int, classes: int, width: int, device: str) -> float:
    features = F.normalize(torch.randn(batch, width, device=device)).requires_grad_()
    directions = F.normalize(torch.randn(classes, width, device=device))
    kappa, target = 1000 * torch.rand(classes, device=device), torch.randint(classes, (batch,), device=device)

    def step() -> None:
        features.grad = None
        vmf_cross_entropy(features, target, directions, kappa).backward()

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=1.0).median


def main(path: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in RANGES.items():
        times = [milliseconds(**{**BASE, name: value}, device=device) for value in values]
        print(name, [f"{value}: {time:.2f} ms" for value, time in zip(values, times, strict=True)])
        axis.plot([value / BASE[name] for value in values], times, marker="o", label=f"{name} ({BASE[name]})")
    scale = [1 / 4, 16]
    centre = milliseconds(**BASE, device=device)
    axis.plot(scale, [centre * s for s in scale], color="grey", linestyle=":", label="linear")
    axis.set(xscale="log", yscale="log", xlabel="times the value in brackets", ylabel="forward and backward, ms")
    about = machine()
    axis.set_title(f"vmf_cross_entropy, float32, {about['machine']}, commit {about['commit']}", fontsize=8)
    axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(sys.argv[1])
