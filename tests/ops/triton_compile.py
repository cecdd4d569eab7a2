"""Compiles what launches of the Triton kernels would, for a GPU that is not here. Prints what each kernel uses, a JSON
object a line.

python triton_compile.py {sm_80,sm_90,sm_100,gfx942}
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from triton.backends.compiler import GPUTarget
from triton_driver import recorded_launches

from ltfast.ops.agcl import triton as agcl
from ltfast.ops.balanced_bce import triton as balanced_bce
from ltfast.ops.bessel import triton as bessel
from ltfast.ops.class_sums import triton as class_sums
from ltfast.ops.fused_loss import accumulator
from ltfast.ops.noise import triton as noise
from ltfast.ops.queue_softmax import triton as queue_softmax
from ltfast.ops.roi_pool import triton as roi_pool
from ltfast.ops.scale_rows import triton as scale_rows
from ltfast.ops.taylor import triton as taylor
from ltfast.ops.vmf import triton as vmf

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}  # bytes of a program
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FP32, FP64, BF16, FP16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = {"fp32": FP32, "bf16": BF16, "fp16": FP16, "fp64": FP64}
ROWS = 256
CLASSES = (10, 1000, 8142, 100_000)


def usage(compiled: Any, target: str) -> dict[str, int]:
    """Registers; a thread's memory in bytes (the stack, and registers spilled to it); a program's shared memory; vector
    registers spilled. (gfx942's scalar registers may rest in vector lanes, which is no memory.)"""
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]

        def field(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

        registers, local, spills = field("vgpr_count"), field("private_segment_fixed_size"), field("vgpr_spill_count")
    else:
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compiled.asm["cubin"])
            cubin.flush()
            command = [cuobjdump, "-res-usage", cubin.name]
            report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        registers, stack, memory = (int(re.search(rf"\b{x}:(\d+)", report).group(1)) for x in ("REG", "STACK", "LOCAL"))
        local, spills = stack + memory, 0  # what NVIDIA's compiler spills, it spills to local memory
    return {
        "registers": registers, "local_bytes": local, "shared_bytes": compiled.metadata.shared, "spills": spills,
    }  # fmt: skip


def empty(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def labels(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int64)


def queue_softmax_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, width, exclude in (
        ("fp32", 128, False), ("bf16", 128, False), ("fp16", 128, True), ("fp64", 128, True), ("fp32", 40, True),
        ("bf16", 64, True), ("fp32", 512, True), ("bf16", 512, False), ("fp64", 512, False),
    ):  # fmt: skip

        def launch(dtype: torch.dtype = DTYPES[name], width: int = width, exclude: bool = exclude) -> None:
            queries, keys = empty(ROWS, width, dtype=dtype), empty(65536, width, dtype=dtype)
            valid, columns = (None, labels(ROWS)) if exclude else (labels(), None)
            lse, _ = queue_softmax.queue_softmax(queries, keys, 0.07, valid, columns)
            queue_softmax.key_gradient(queries, keys, 0.07, valid, columns, lse, empty(ROWS, dtype=lse.dtype))

        yield f"queue_softmax {name} {width} {'exclude' if exclude else 'valid'}", launch


def taylor_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """With tensors that have memory: their addresses go into a table."""

    def case(label: str, run: Callable[..., Any], dtypes: Sequence[torch.dtype], offset: int = 0) -> tuple:
        def launch() -> None:
            with unset_fake_temporarily():
                run(*[[torch.zeros(101, dtype=dtype)[offset:]] for dtype in dtypes])

        return label, launch

    for names, offset in itertools.product(
        (("fp32", "fp32", "fp32"), ("fp32", "bf16", "fp16"), ("fp64", "fp64", "fp64")), (0, 1)
    ):
        label = f"taylor_importance_ {' '.join(names)} {'unaligned' if offset else 'aligned'}"
        yield case(label, taylor.taylor_importance_, [DTYPES[name] for name in names], offset)
    for dtype, with_values in itertools.product((torch.int8, torch.int16, torch.int32, torch.int64), (True, False)):
        label = f"apply_masks_ {dtype.itemsize} bytes {'values' if with_values else 'zeros'}"
        yield case(label, taylor.apply_masks_, [dtype, torch.bool, *[dtype] * with_values])
    for name, masked in itertools.product(("fp32", "fp64"), (True, False)):
        label = f"importance_threshold {name} {'masked' if masked else 'whole'}"
        yield case(label, partial(taylor.importance_threshold, 0.3), [DTYPES[name], *[torch.bool] * masked])


def agcl_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for (name, dtype), classes in itertools.product(DTYPES.items(), CLASSES):
        for gamma_pos, gamma_neg in ((0.0, 4.0), (0.5, 8.0), (0.5, 1.5)) if dtype == FP32 else ((0.5, 4.0),):

            def launch(dtype=dtype, classes=classes, gamma_pos=gamma_pos, gamma_neg=gamma_neg) -> None:
                agcl.agcl(
                    logits=empty(ROWS, classes, dtype=dtype),
                    target=labels(ROWS),
                    class_noise=empty(classes, dtype=accumulator(dtype)),
                    seed=labels(1),
                    scale=20.0,
                    margin=0.1,
                    weight_pos=0.9,
                    weight_neg=0.1,
                    gamma_pos=gamma_pos,
                    gamma_neg=gamma_neg,
                    ignore_index=-100,
                    reduction="mean",
                    with_gradient=True,
                    unit=1.0,
                )

            yield f"agcl {name} {classes} {gamma_pos} {gamma_neg}", launch
    for name, dtype in DTYPES.items():

        def launch_share(dtype: torch.dtype = dtype) -> None:
            for incoming in (None, empty(ROWS, 5, dtype=FP64)):
                agcl.agcl_share(
                    logits=empty(ROWS, 100_000, dtype=dtype),
                    target=labels(ROWS),
                    class_noise=empty(100_000, dtype=accumulator(dtype)),
                    seed=labels(1),
                    first=50_002,
                    scale=20.0,
                    margin=0.1,
                    gamma_neg=1.5,
                    statistics=empty(ROWS, 5, dtype=FP64),
                    incoming=incoming,
                )

        yield f"agcl_share {name}", launch_share


def balanced_bce_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for (name, dtype), classes, soft in itertools.product(DTYPES.items(), CLASSES, (False, True)):

        def launch(dtype=dtype, classes=classes, soft=soft) -> None:
            per_class = empty(classes, dtype=accumulator(dtype))
            balanced_bce.balanced_bce(
                logits=empty(ROWS, classes, dtype=dtype),
                target=empty(ROWS, classes) if soft else labels(ROWS),
                bias=per_class,
                weight=per_class if soft else None,
                pos_weight=per_class if soft else None,
                label_smoothing=0.1,
                threshold=None,
                ignore_index=-100,
                reduction="mean",
                with_gradient=True,
                unit=1.0,
            )

        yield f"balanced_bce {name} {classes} {'soft' if soft else 'labels'}", launch


def roi_pool_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, width, channels_last in (
        ("fp32", 7, False), ("fp32", 7, True), ("fp32", 100, False), ("bf16", 7, True), ("fp16", 7, False),
        ("fp64", 7, False), ("fp64", 100, True),
    ):  # fmt: skip

        def launch(dtype: torch.dtype = DTYPES[name], width: int = width, channels_last: bool = channels_last) -> None:
            features = empty(64, 2048, width, width, dtype=dtype)
            boxes, pooled = empty(64, 5, 4, dtype=accumulator(dtype)), empty(64, 5, 2048, dtype=dtype)
            for run in (roi_pool.roi_pool, roi_pool.roi_pool_backward):
                run(features, boxes, pooled, channels_last, 1 / 32, 2, -1, True)

        yield f"roi_pool {name} {width} {'channels_last' if channels_last else 'contiguous'}", launch


def vmf_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, nu in itertools.product(("fp32", "fp64"), (0.0, 63.0)):

        def launch_ratio(dtype: torch.dtype = DTYPES[name], nu: float = nu) -> None:
            vmf.vmf_ratio(empty(ROWS, 1000, dtype=dtype), empty(1000, dtype=dtype), nu, True)

        yield f"vmf_ratio {name} {nu}", launch_ratio
    for name, width, classes in (
        ("fp32", 128, 10), ("fp32", 128, 1000), ("fp32", 128, 8142), ("fp32", 2048, 8142), ("fp32", 2, 1000),
        ("fp32", 2, 8142), ("fp64", 128, 1000), ("fp64", 2, 1000),
    ):  # fmt: skip

        def launch(dtype: torch.dtype = DTYPES[name], width: int = width, classes: int = classes) -> None:
            vmf.vmf_cross_entropy(
                features=empty(ROWS, width, dtype=dtype),
                target=labels(ROWS),
                directions=empty(classes, width, dtype=dtype),
                kappa=empty(classes, dtype=dtype),
                log_prior=empty(classes, dtype=dtype),
                temperature=0.1,
                ignore_index=-100,
                reduction="mean",
                with_gradient=True,
                unit=1.0,
            )

        yield f"vmf_cross_entropy {name} {width} {classes}", launch


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """A label, and what launches kernels."""
    yield from queue_softmax_cases()
    yield from taylor_cases()
    yield from agcl_cases()
    yield from balanced_bce_cases()
    yield from roi_pool_cases()
    yield from vmf_cases()
    for (name, dtype), classes in itertools.product(DTYPES.items(), CLASSES):
        yield (
            f"scale_rows {name} {classes}",
            lambda dtype=dtype, classes=classes: scale_rows.scale_rows_(
                empty(ROWS, classes, dtype=dtype), empty(1, dtype=accumulator(dtype)), 0.5
            ),
        )
    for (name, dtype), width in itertools.product(DTYPES.items(), (128, 2048)):
        yield (
            f"class_sums {name} {width}",
            lambda dtype=dtype, width=width: class_sums.class_sums(empty(ROWS, width, dtype=dtype), labels(ROWS), 1000),
        )
    for function in (bessel.log_iv, bessel.bessel_ratio, bessel.bessel_ratio_grad):
        yield f"{function.__name__} fp32", lambda f=function: f(empty(dtype=FP64), empty(1000))
    yield "half_normal", lambda: noise.half_normal(ROWS, 1000, labels(1))


def compiled_cases(target: str) -> Iterator[dict[str, Any]]:
    """Of each specialisation that no case before it had: what the test wants to know of it."""
    seen = set()
    with recorded_launches(TARGETS[target]) as launches:
        for label, launch in cases():
            launches.clear()
            launch()
            for kernel, compiled in launches:
                if id(compiled) in seen:
                    continue
                seen.add(id(compiled))
                yield {
                    "case": label,
                    "kernel": f"{kernel.fn.__module__}.{kernel.fn.__name__}",
                    "signature": compiled.src.signature,
                    "shared_limit": SHARED[target],
                    **usage(compiled, target),
                }


if __name__ == "__main__":
    for row in compiled_cases(sys.argv[1]):
        print(json.dumps(row), flush=True)
