"""How ``queue_softmax`` grows with keys, batch and feature width: forward and backward, a line a dimension.

python bench/growth_queue_softmax.py bench/results/queue_softmax_growth_cpu.png
"""

import sys

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from conftest import machine
from ltfast.ops import queue_softmax

BASE = {"keys": 65536, "batch": 256, "width": 128}
RANGES = {
    "keys": [4096, 16384, 65536, 262144, 1048576],
    "batch": [16, 32, 64, 128, 256, 512, 1024, 2048],
    "width": [32, 64, 128, 256, 512],
}


def milliseconds(keys: int, batch: int, width: int, device: str) -> float:
    """With the gradient in the queries alone, as for a queue."""
    queries = F.normalize(torch.randn(batch, width, device=device)).requires_grad_()
    queue = F.normalize(torch.randn(keys, width, device=device))
    incoming = torch.rand(batch, device=device)

    def step() -> None:
        queries.grad = None
        queue_softmax(queries, queue)[0].backward(incoming)

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=1.0).median


def main(path: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in RANGES.items():
        times = [milliseconds(**{**BASE, name: value}, device=device) for value in values]
        print(name, [f"{value}: {time:.2f} ms" for value, time in zip(values, times, strict=True)])
        axis.plot([value / BASE[name] for value in values], times, marker="o", label=f"{name} ({BASE[name]})")
    scale = [1 / 16, 16]
    centre = milliseconds(**BASE, device=device)
    axis.plot(scale, [centre * s for s in scale], color="grey", linestyle=":", label="linear")
    axis.set(xscale="log", yscale="log", xlabel="times the value in brackets", ylabel="forward and backward, ms")
    about = machine()
    axis.set_title(f"queue_softmax, float32, {about['machine']}, commit {about['commit']}", fontsize=8)
    axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(sys.argv[1])
