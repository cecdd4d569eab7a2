"""Calls every kernel, for compute-sanitizer, on small tensors that still have several tiles, blocks of rows and splits.

    python bench/gpu_check_kernels.py {cuda,cpu} [--past-the-end]

On "cpu" the kernels run in Triton's interpreter, which needs TRITON_INTERPRET=1. `--past-the-end` instead launches a
kernel that writes past the end of its tensor, which compute-sanitizer must report.
"""

import sys

import torch
import triton
import triton.language as tl

import ltfast
from ltfast.ops import apply_masks_, importance_threshold, patch_roi_pool, taylor_importance_
from ltfast.ops.catalog import OPS
from ltfast.ops.core import backends
from ltfast.ops.core.cases import Sizes
from ltfast.ops.noise import draw_seed
from ltfast.ops.noise.triton import half_normal


@triton.jit
def _past_the_end_kernel(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), 0.0)


def kernels_of_functions(device: torch.device, *, small: bool) -> None:
    """Every op that returns a result, and its gradient; if small, one tile of each, since the interpreter is slow."""
    with ltfast.backend("triton"), device:
        for dtype in (torch.float32,) if small else (torch.float32, torch.bfloat16):
            sizes = Sizes(2, 20, 8, dtype) if small else Sizes(300, 9001, 136, dtype)
            for name, make in ((name, make) for op in OPS for name, make in op.examples.items()):
                if dtype == torch.float32 or name not in ("log_iv", "bessel_ratio"):  # without half precision
                    example = make(sizes)
                    (3 * example.function(example.x.requires_grad_(), example.labels)).backward()
        if not small:  # more boxes and channels than the example has
            features, corners = torch.randn(2, 150, 20, 20, requires_grad=True), 10 * torch.rand(2, 20, 2)
            patch_roi_pool(features, torch.cat([corners, corners + 5], 2)).sum().backward()


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
