"""Compiles the Triton kernels for a GPU that is not here and prints what each uses, a JSON object a line.

python triton_compile.py {sm_80,sm_90,sm_100,gfx942}

The ops' own launchers are called, so every kernel has the signature, the constants and the options of a real launch.
"""

import importlib
import itertools
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from stand_in_driver import Launch, launches_on
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ltfast import ops
from ltfast.ops.agcl import triton as agcl
from ltfast.ops.balanced_bce import triton as balanced_bce
from ltfast.ops.bessel import triton as bessel
from ltfast.ops.class_sums import triton as class_sums
from ltfast.ops.core import launch
from ltfast.ops.core.scale_rows import triton as scale_rows
from ltfast.ops.noise import triton as noise
from ltfast.ops.queue_softmax import triton as queue_softmax
from ltfast.ops.roi_pool import triton as roi_pool
from ltfast.ops.taylor import triton as taylor
from ltfast.ops.vmf import triton as vmf

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}  # bytes of a program
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
CLASSES = (10, 1000, 8142, 100_000)
ROWS = 256


@dataclass
class Usage:
    registers: int
    local_bytes: int  # per-thread memory: the stack, and registers spilled to it
    shared_bytes: int
    spills: int  # vector registers spilled; gfx942's scalar registers may rest in vector lanes, which is no memory


def usage(started: Launch, target: str) -> Usage:
    compiled = started.compiled
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]

        def field(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

        return Usage(
            field("vgpr_count"),
            field("private_segment_fixed_size"),
            compiled.metadata.shared,
            field("vgpr_spill_count"),
        )
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        report = subprocess.run(
            [cuobjdump, "-res-usage", cubin.name], check=True, capture_output=True, text=True
        ).stdout
    stack, local = (int(re.search(rf"\b{name}:(\d+)", report).group(1)) for name in ("STACK", "LOCAL"))
    registers = int(re.search(r"\bREG:(\d+)", report).group(1))
    # what NVIDIA's compiler spills, it spills to local memory
    return Usage(registers, stack + local, compiled.metadata.shared, 0)


def kernels() -> set[JITFunction]:
    """Every kernel of ltfast: the functions of Triton that are called `_..._kernel`."""
    found = set()
    for module in pkgutil.walk_packages(ops.__path__, "ltfast.ops."):
        if module.name.endswith(".triton"):
            values = vars(importlib.import_module(module.name)).values()
            found |= {x for x in values if isinstance(x, JITFunction) and x.__name__.endswith("_kernel")}
    return found


def floats_without_type(started: Launch) -> list[str]:
    """The Python floats that a launch passes on as float32: it does so without an annotation, and loses digits."""
    return [k for k, v in started.arguments.items() if isinstance(v, float) and started.signature[k] != "fp64"]


def gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def labels(count: int = ROWS) -> Tensor:
    return gpu(count, dtype=torch.int64)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def cases() -> Iterator[str]:
    """Calls the launchers. Yields a label after each call."""
    with FakeTensorMode():
        yield from queue_softmax_cases()
        yield from row_cases()
        yield from roi_pool_cases()
        yield from vmf_cases()
        for dtype, width in itertools.product(DTYPES, (128, 2048)):
            class_sums.class_sums(gpu(ROWS, width, dtype=DTYPES[dtype]), labels(), 1000)
            yield f"class_sums {dtype} {width}"
        for function, dtype in itertools.product(("log_iv", "bessel_ratio", "bessel_ratio_grad"), ("fp32", "fp64")):
            getattr(bessel, function)(gpu(1, dtype=torch.float64), gpu(1000, dtype=DTYPES[dtype]))
            yield f"{function} {dtype}"
        noise.half_normal(ROWS, 1000, gpu(1, dtype=torch.int64))
        yield "half_normal"
    yield from taylor_cases()


def queue_softmax_cases() -> Iterator[str]:
    for dtype, width, exclude in (
        ("fp32", 128, False), ("bf16", 128, False), ("fp16", 128, True), ("fp64", 128, True), ("fp32", 40, True),
        ("bf16", 64, True), ("fp32", 512, True), ("bf16", 512, False), ("fp64", 512, False),
    ):  # fmt: skip
        queries, keys = (gpu(rows, width, dtype=DTYPES[dtype]) for rows in (ROWS, 65_536))
        chosen = (None, labels()) if exclude else (labels(1), None)
        lse, _ = queue_softmax.queue_softmax(queries, keys, 0.07, *chosen)
        yield f"queue_softmax {dtype} {width} {'exclude' * exclude}"
        queue_softmax.key_gradient(queries, keys, 0.07, *chosen, lse, torch.empty_like(lse))
        yield f"queue_softmax key gradient {dtype} {width} {'exclude' * exclude}"


def row_cases() -> Iterator[str]:
    """The kernels whose programs handle one row of logits each."""
    for (name, dtype), classes in itertools.product(DTYPES.items(), CLASSES):
        acc = accumulator(dtype)
        logits, of_classes, seed = gpu(ROWS, classes, dtype=dtype), gpu(classes, dtype=acc), labels(1)
        for gammas in ((0.0, 4.0), (0.5, 8.0), (0.5, 1.5)) if name == "fp32" else ((0.5, 4.0),):
            agcl.agcl(logits, labels(), of_classes, seed, 20.0, 0.1, 1.0, 0.5, *gammas, -100, "mean", True, 1.0)
            yield f"agcl {name} {classes} {gammas[0]} {gammas[1]}"
        for incoming in (None, gpu(3, ROWS, dtype=torch.float64)) if classes == CLASSES[-1] else ():
            statistics = gpu(ROWS, 8, dtype=torch.float64)
            agcl.agcl_share(logits, labels(), of_classes, seed, 1000, 20.0, 0.1, 1.5, statistics, incoming)
            yield f"agcl_share {name} {'gradient' if incoming is not None else ''}"
        for soft in (False, True):
            target = gpu(ROWS, classes) if soft else labels()
            weights = (of_classes, of_classes) if soft else (None, None)
            balanced_bce.balanced_bce(logits, target, of_classes, *weights, 0.1, None, -100, "mean", True, 1.0)
            yield f"balanced_bce {name} {classes} {'soft' if soft else 'labels'}"
        scale_rows.scale_rows_(logits, gpu(ROWS, dtype=acc), 1.0)
        yield f"scale_rows {name} {classes}"


def roi_pool_cases() -> Iterator[str]:
    for dtype, width in (("fp32", 7), ("fp32", 100), ("bf16", 7), ("fp16", 7), ("fp64", 7), ("fp64", 100)):
        features = gpu(8, 2048, width, width, dtype=DTYPES[dtype])
        boxes = gpu(8, 5, 4, dtype=accumulator(DTYPES[dtype]))
        for function in (roi_pool.roi_pool, roi_pool.roi_pool_backward):
            function(features, boxes, gpu(8, 5, 2048, dtype=DTYPES[dtype]), True, 1 / 32, 7, 0, True)
            yield f"{function.__name__} {dtype} {width}"


def vmf_cases() -> Iterator[str]:
    for dtype, width in itertools.product(("fp32", "fp64"), (2, 128)):
        kappa = gpu(1000, dtype=DTYPES[dtype])
        vmf.vmf_ratio(gpu(ROWS, 1000, dtype=DTYPES[dtype]), kappa, width / 2 - 1, True)
        yield f"vmf_ratio {dtype} {width}"
    # one block of classes; and several: the first of them, one between, and the last
    for dtype, width, classes in (
        ("fp32", 128, 10), ("fp32", 128, 1000), ("fp32", 2048, 9000), ("fp32", 2, 1000), ("fp32", 2, 9000),
        ("fp64", 128, 1000), ("fp64", 2, 1000),
    ):  # fmt: skip
        z, mu = (gpu(rows, width, dtype=DTYPES[dtype]) for rows in (ROWS, classes))
        kappa, log_prior = gpu(classes, dtype=DTYPES[dtype]), gpu(classes, dtype=DTYPES[dtype])
        vmf.vmf_cross_entropy(z, labels(), mu, kappa, log_prior, 0.1, -100, "mean", True, 1.0)
        yield f"vmf_cross_entropy {dtype} {width} {classes}"


def taylor_cases() -> Iterator[str]:
    """These launchers read the addresses of their tensors, so the tensors are real ones."""

    def tensors(dtype: torch.dtype, first: int = 0) -> list[Tensor]:
        return [torch.empty(5000, dtype=dtype)[first:]]

    for (e, w, g), first in itertools.product(
        (("fp32", "fp32", "fp32"), ("fp32", "bf16", "fp16"), ("fp64", "fp64", "fp64")), (0, 1)
    ):
        taylor.taylor_importance_(*(tensors(DTYPES[name], first) for name in (e, w, g)))
        yield f"taylor_importance_ {e} {w} {g} {'unaligned' * first}"
    integers = (torch.uint8, torch.float16, torch.float32, torch.float64)
    for dtype, with_values in itertools.product(integers, (True, False)):
        values = [tensors(dtype)] if with_values else []
        taylor.apply_masks_(tensors(dtype), tensors(torch.bool), *values)
        yield f"apply_masks_ {dtype.itemsize} bytes {'values' * with_values}"
    for dtype, masked in itertools.product(("fp32", "fp64"), (True, False)):
        taylor.importance_threshold(0.5, tensors(DTYPES[dtype]), *([tensors(torch.bool)] if masked else []))
        yield f"importance_threshold {dtype} {'masked' * masked}"


def main(target: str) -> None:
    hip = mock.patch.object(launch, "HIP", True) if target.startswith("gfx") else nullcontext()
    known, launched = set(), set()
    with launches_on(TARGETS[target]) as launches, hip:
        for label in cases():
            for started in launches:
                launched.add(started.kernel)
                if id(started.compiled) in known:
                    continue
                known.add(id(started.compiled))
                facts = {"kernel": f"{label}: {started.kernel.__name__}", "floats": floats_without_type(started)}
                limits = {"target": target, "shared_limit": SHARED[target]}
                print(json.dumps({**facts, **limits, **asdict(usage(started, target))}), flush=True)
            launches.clear()
    print(json.dumps({"never launched": sorted(x.__name__ for x in kernels() - launched)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
