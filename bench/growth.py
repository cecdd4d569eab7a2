"""How an op's time grows: a line a dimension, in one picture."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.benchmark import Timer

from conftest import machine


def plot(
    op: str,
    base: Mapping[str, int],
    ranges: Mapping[str, Sequence[int]],
    make_step: Callable[..., Callable[[], object]],
    path: str | Path,
) -> None:
    """Print and draw the medians of a forward and backward pass.

    Args:
        op: its name.
        base: dimension -> its size, where another one is varied.
        ranges: dimension -> its sizes.
        make_step: of the dimensions' sizes and the device: what to time.
        path: of the picture.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def milliseconds(**sizes: int) -> float:
        step = make_step(**{**base, **sizes}, device=device)
        timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        return 1e3 * timer.blocked_autorange(min_run_time=1.0).median

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in ranges.items():
        times = [milliseconds(**{name: value}) for value in values]
        print(name, [f"{value}: {time:.2f} ms" for value, time in zip(values, times, strict=True)])
        axis.plot([value / base[name] for value in values], times, marker="o", label=f"{name} ({base[name]})")
    scale = [1 / 16, 16]
    centre = milliseconds()
    axis.plot(scale, [centre * s for s in scale], color="grey", linestyle=":", label="linear")
    axis.set(xscale="log", yscale="log", xlabel="times the value in brackets", ylabel="forward and backward, ms")
    about = machine()
    axis.set_title(f"{op}, float32, {about['machine']}, commit {about['commit']}", fontsize=8)
    axis.legend()
    figure.savefig(path, dpi=120)
