"""Calls every kernel, for compute-sanitizer, on small tensors that still have several tiles, blocks of rows and splits.

    python bench/gpu_check_kernels.py {cuda,cpu} [--past-the-end]

On "cpu" the kernels run in Triton's interpreter, which needs TRITON_INTERPRET=1. `--past-the-end` instead launches a
kernel that writes past the end of its tensor, which compute-sanitizer must report.
"""

import sys
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

import ltfast
from ltfast.ops import (
    apply_masks_,
    balanced_bce,
    cross_entropy,
    importance_threshold,
    patch_roi_pool,
    queue_softmax,
    taylor_importance_,
)
from ltfast.ops.catalog import OPS
from ltfast.ops.core import backends
from ltfast.ops.core.cases import Sizes
from ltfast.ops.noise import draw_seed
from ltfast.ops.noise.triton import half_normal
from ltfast.ops.reduction.launch import MOST_ADDED, MOST_COUNTED


@triton.jit
def _past_the_end_kernel(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), 0.0)


EXAMPLES = {name: make for op in OPS for name, make in op.examples.items()}


def calls(*, small: bool) -> Iterator[tuple[str, Sizes]]:
    """The examples to run, and their sizes; if small, one tile of each, since the interpreter is slow."""
    if small:
        yield from ((name, Sizes(2, 20, 8, torch.float32)) for name in EXAMPLES)
        return
    for dtype in (torch.float32, torch.bfloat16):
        for name in EXAMPLES:
            if dtype == torch.float32 or name not in ("log_iv", "bessel_ratio"):  # without half precision
                yield name, Sizes(300, 9001, 136, dtype)
        # In bfloat16, the forward pass has a launch for each of these widths. 16 divides the numbers of queries and of
        # keys, as for a real queue; tiles and splits do not divide them.
        for width in (64, 128, 256, 512):
            yield "queue_softmax, keys", Sizes(304, 1998, width, dtype)
    # a launch that counts the labels before the kernel, and one that adds the losses after it
    for rows in (MOST_COUNTED + 1, MOST_ADDED + 1):
        for name in ("agcl", "balanced_bce", "cross_entropy", "vmf_cross_entropy"):
            yield name, Sizes(rows, 1500, 8, torch.float32)
    yield "vmf_cross_entropy", Sizes(300, 10, 600, torch.float32)  # features wider than a program handles at once


def run_example(device: torch.device, name: str, sizes: Sizes) -> None:
    """A result, and its gradient."""
    with ltfast.backend("triton"), device:
        example = EXAMPLES[name](sizes)
        (3 * example.function(example.x.requires_grad_(), example.labels)).backward()


def kernels_of_functions(device: torch.device, *, small: bool) -> None:
    """Every op that returns a result, and its gradient."""
    for name, sizes in calls(small=small):
        run_example(device, name, sizes)
    if not small:  # what no example reaches: more boxes and channels, keys that end inside a tile, other targets
        with ltfast.backend("triton"), device:
            features, corners = torch.randn(2, 150, 20, 20, requires_grad=True), 10 * torch.rand(2, 20, 2)
            patch_roi_pool(features, torch.cat([corners, corners + 5], 2)).sum().backward()
            keys = torch.randn(2000, 128, requires_grad=True)
            queue_softmax(torch.randn(304, 128), keys, valid=torch.tensor(1501))[0].sum().backward()
            for classes in (1500, 9001):
                logits = torch.randn(300, classes, requires_grad=True)
                bias, weight, soft = torch.randn(classes), torch.rand(classes), logits.detach().softmax(1)
                balanced_bce(logits, soft, bias, weight=weight).backward()
                cross_entropy(logits, soft, bias, weight=weight).backward()
                cross_entropy(logits, torch.randint(classes, (300,)), None).backward()


def kernels_of_lists(device: torch.device) -> None:
    """The functions over the tensors of a model, also in CUDA C++, and the noise, which has no gradient."""
    in_cuda = device.type == "cuda" and backends.why_not("native", device, in_cuda=True) is None
    for name in ("triton", *["native"] * in_cuda):
        with ltfast.backend(name), device:
            over, parameters, gradients = ([torch.rand(size) for size in (5000, 70_001)] for _ in range(3))
            masks = [x > 0.5 for x in parameters]
            taylor_importance_(over, parameters, gradients)
            importance_threshold(over, 0.3, masks=masks)
            apply_masks_(gradients, masks)
            apply_masks_(gradients, masks, parameters)
    half_normal(3, 5000, draw_seed(device))


if __name__ == "__main__":
    chosen = torch.device(sys.argv[1])
    if sys.argv[2:] == ["--past-the-end"]:
        _past_the_end_kernel[(1,)](torch.empty(16, device=chosen), BLOCK=1024)
    else:
        kernels_of_functions(chosen, small=chosen.type == "cpu")
        kernels_of_lists(chosen)
    if chosen.type == "cuda":
        torch.cuda.synchronize()
