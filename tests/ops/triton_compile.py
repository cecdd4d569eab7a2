"""Compiles the Triton kernels for a GPU that is not here and prints what each uses, a JSON object a line.

python triton_compile.py {sm_80,sm_90,sm_100,gfx942}
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ltfast.ops.agcl import triton as agcl
from ltfast.ops.balanced_bce import triton as balanced_bce
from ltfast.ops.bessel import triton as bessel
from ltfast.ops.class_sums import triton as class_sums
from ltfast.ops.mean_weight import triton as mean_weight
from ltfast.ops.noise import triton as noise
from ltfast.ops.queue_softmax import triton as queue_softmax
from ltfast.ops.roi_pool import triton as roi_pool
from ltfast.ops.scale_rows import triton as scale_rows
from ltfast.ops.taylor import triton as taylor
from ltfast.ops.taylor.tables import CODES
from ltfast.ops.vmf import triton as vmf

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}  # bytes of a program
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass
class Usage:
    registers: int
    local_bytes: int  # per-thread memory: the stack, and registers spilled to it
    shared_bytes: int
    spills: int  # vector registers spilled; gfx942's scalar registers may rest in vector lanes, which is no memory


def compile_kernel(
    kernel, pointers: dict[str, str], scalars: dict[str, str], constexprs: dict, target: str, num_warps: int
) -> Usage:
    """Compile ``kernel`` for a target.

    Args:
        pointers: argument name -> Triton pointer type ("*fp32"); taken as aligned to 16 bytes.
        scalars: argument name -> Triton type.
        constexprs: argument name -> value.
    """
    names = kernel.arg_names
    signature = {name: (pointers | scalars).get(name, "constexpr") for name in names}
    missing = [name for name in names if signature[name] == "constexpr" and name not in constexprs]
    assert not missing, f"no value for {missing}"
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in constexprs.items()}, attributes)
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": num_warps})
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
    return Usage(
        registers, stack + local, compiled.metadata.shared, 0
    )  # what NVIDIA's compiler spills, it spills to local memory


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
CLASSES = (10, 1000, 8142, 100_000)


def queue_softmax_cases(hip: bool) -> Iterator[tuple]:
    precisions = {"fp64": "ieee", "fp32": "ieee" if hip else "tf32x3", "bf16": "ieee", "fp16": "ieee"}
    for dtype, width, exclude in (
        ("fp32", 128, False), ("bf16", 128, False), ("fp16", 128, True), ("fp64", 128, True), ("fp32", 40, True),
        ("bf16", 64, True), ("fp32", 512, True), ("bf16", 512, False), ("fp64", 512, False),
    ):  # fmt: skip
        acc = "fp64" if dtype == "fp64" else "fp32"
        strides = dict.fromkeys(("query_stride", "key_stride", "rows", "columns", "width"), "i32")
        options = queue_softmax.launch_options(width, DTYPES[dtype], hip=hip)
        warps = options.pop("num_warps")
        yield (
            f"queue_softmax {dtype} {width} {'exclude' * exclude}",
            queue_softmax._attend_kernel,
            {
                "queries": f"*{dtype}",
                "keys": f"*{dtype}",
                "valid": "*i64",
                "exclude": "*i64",
                "lse": f"*{acc}",
                "mean": f"*{acc}",
            },
            strides | {"split_size": "i32", "scale": "fp64"},
            {
                "VALID": not exclude,
                "EXCLUDE": exclude,
                **queue_softmax._dtypes(DTYPES[dtype], DTYPES[acc], precisions[dtype]),
                **options,
            },
            warps,
        )
        options = queue_softmax.key_gradient_launch_options(width, DTYPES[acc], hip=hip)
        warps = options.pop("num_warps")
        pointers = dict.fromkeys(("lse", "incoming", "gradient"), f"*{acc}")
        yield (
            f"queue_softmax key gradient {dtype} {width} {'exclude' * exclude}",
            queue_softmax._key_gradient_kernel,
            {"queries": f"*{dtype}", "keys": f"*{dtype}", "valid": "*i64", "exclude": "*i64"} | pointers,
            strides | {"scale": "fp64", "unit": "fp64"},
            {
                "VALID": not exclude,
                "EXCLUDE": exclude,
                **queue_softmax._dtypes(DTYPES[acc], DTYPES[acc], precisions[acc]),
                **options,
            },
            warps,
        )
    for acc in ("fp32", "fp64"):
        yield (
            f"queue_softmax merge {acc}",
            queue_softmax._merge_kernel,
            dict.fromkeys(("part_lse", "part_mean", "lse", "mean"), f"*{acc}"),
            {"rows": "i32", "width": "i32", "splits": "i32"},
            {"ACC": tl.float32 if acc == "fp32" else tl.float64, "SPLITS": 256, "WIDTH": 512},
            4,
        )


def taylor_cases() -> Iterator[tuple]:
    tables = {"table": "*i64", "chunk_rows": "*i32"}
    update, count = dict(taylor.UPDATE), dict(taylor.COUNT)
    warps = update.pop("num_warps")
    for (e, w, g), aligned in itertools.product(
        (("fp32", "fp32", "fp32"), ("fp32", "bf16", "fp16"), ("fp64", "fp64", "fp64")), (True, False)
    ):
        types = {name: taylor.DTYPES[CODES[DTYPES[x]]] for name, x in zip("EWG", (e, w, g), strict=True)}
        yield (
            f"taylor_importance_ {e} {w} {g} {'aligned' * aligned}",
            taylor._importance_kernel,
            tables,
            {},
            {**types, "ALIGNED": aligned, **update},
            warps,
        )
    for size, with_values in itertools.product(taylor.INTEGERS, (True, False)):
        yield (
            f"apply_masks_ {size} bytes {'values' * with_values}",
            taylor._apply_kernel,
            tables,
            {},
            {"BITS": taylor.INTEGERS[size], "WITH_VALUES": with_values, "ALIGNED": True, **update},
            warps,
        )
    warps = count.pop("num_warps")
    for dtype, masked in itertools.product(("fp32", "fp64"), (True, False)):
        types = taylor.count_dtypes(DTYPES[dtype]) | {"BINS": 1 << taylor.DIGIT}
        yield (
            f"importance_threshold count {dtype} {'masked' * masked}",
            taylor._count_kernel,
            tables | {"counts": "*i64", "state": "*i64"},
            {"shift": "i32"},
            {**types, "MASKED": masked, "ALIGNED": True, **count},
            warps,
        )
        yield (
            f"importance_threshold select {dtype} {'first' if masked else 'last'}",
            taylor._select_kernel,
            {"counts": "*i64", "state": "*i64", "out": f"*{dtype}"},
            {"shift": "i32", "fraction_bits": "i64"},
            {**types, "FIRST": masked, "LAST": not masked},
            4,
        )


def cases(target: str) -> Iterator[tuple]:
    """A label, and the arguments of ``compile_kernel`` but the target."""
    yield from queue_softmax_cases(target.startswith("gfx"))
    yield from taylor_cases()
    for (dtype, torch_dtype), classes in itertools.product(DTYPES.items(), CLASSES):
        acc = "fp64" if dtype == "fp64" else "fp32"
        accumulator = tl.float64 if dtype == "fp64" else tl.float32
        torch_acc = torch.float64 if dtype == "fp64" else torch.float32
        options = agcl.launch_options(classes, torch_acc)
        warps = options.pop("num_warps")
        scalars = ("scale", "margin", "weight_pos", "weight_neg", "gamma_pos", "gamma_neg", "unit")
        for gamma_pos, gamma_neg in ((0.0, 4.0), (0.5, 8.0), (0.5, 1.5)) if dtype == "fp32" else ((0.5, 4.0),):
            yield (
                f"agcl {dtype} {classes} {gamma_pos} {gamma_neg}",
                agcl._row_kernel,
                {"logits": f"*{dtype}", "target": "*i64", "class_noise": f"*{acc}", "seed": "*i64",
                 "mean_weight": f"*{acc}", "loss": f"*{acc}", "gradient": f"*{dtype}"},
                {"row_stride": "i32", "classes": "i32", "ignore_index": "i64"} | dict.fromkeys(scalars, "fp64"),
                {"MEAN": True, "NOISY": True, "FOCUS": gamma_pos != 0, "POWER": agcl.power_kind(gamma_neg),
                 "WITH_GRADIENT": True, "ACC": accumulator, **options},
                warps,
            )  # fmt: skip
        if classes == CLASSES[-1]:
            for kernel in (agcl._share_kernel, agcl._share_gradient_kernel):
                options = agcl.share_options(None, 0.0, torch_acc)
                warps = options.pop("num_warps")
                incoming = {"incoming": "*fp64", "gradient": f"*{dtype}"} if "gradient" in kernel.arg_names else {}
                yield (
                    f"agcl{kernel.__name__} {dtype}",
                    kernel,
                    {"logits": f"*{dtype}", "target": "*i64", "class_noise": f"*{acc}", "seed": "*i64",
                     "statistics": "*fp64", **incoming},
                    {"row_stride": "i32", "first": "i32", "classes": "i32", "scale": "fp64", "margin": "fp64",
                     "gamma": "fp64"},
                    {**options, "NOISY": True, "POWER": agcl.power_kind(1.5)},
                    warps,
                )  # fmt: skip
        options = balanced_bce.launch_options(classes, torch_acc)
        warps = options.pop("num_warps")
        scalars = ("on_value", "off_value", "threshold", "unit")
        for soft in (False, True):
            yield (
                f"balanced_bce {dtype} {classes} {'soft' if soft else 'labels'}",
                balanced_bce._row_kernel,
                {"logits": f"*{dtype}", "target": "*fp32" if soft else "*i64", "bias": f"*{acc}",
                 "class_weight": f"*{acc}", "pos_weight": f"*{acc}", "mean_weight": f"*{acc}", "loss": f"*{acc}",
                 "gradient": f"*{dtype}"},
                {"row_stride": "i32", "target_stride": "i32", "classes": "i32", "ignore_index": "i64"}
                | dict.fromkeys(scalars, "fp64"),
                {"MEAN": not soft, "SOFT": soft, "THRESHOLD": False, "WEIGHTED": soft, "POS_WEIGHTED": soft,
                 "WITH_GRADIENT": True, "ACC": accumulator, "TERMS": balanced_bce.series_terms(torch_dtype), **options},
                warps,
            )  # fmt: skip
        yield (
            f"scale_rows {dtype} {classes}",
            scale_rows._scale_rows_kernel,
            {"matrix": f"*{dtype}", "factor": f"*{acc}"},
            {"factor_stride": "i32", "columns": "i32", "unit": "fp64"},
            {"BLOCK": scale_rows.block_size(classes)},
            8,
        )
    for dtype, width in itertools.product(DTYPES, (128, 2048)):
        options = class_sums.launch_options(width)
        warps = options.pop("num_warps")
        acc = "fp64" if dtype == "fp64" else "fp32"
        yield (
            f"class_sums {dtype} {width}",
            class_sums._class_sums_kernel,
            {"features": f"*{dtype}", "labels": "*i64", "sums": f"*{acc}", "counts": "*i64"},
            {"row_stride": "i32", "rows": "i32", "width": "i32"},
            {"ACC": tl.float64 if dtype == "fp64" else tl.float32, **options},
            warps,
        )
    for dtype, width in (("fp32", 7), ("fp32", 100), ("bf16", 7), ("fp16", 7), ("fp64", 7), ("fp64", 100)):
        options = roi_pool.launch_options(width, DTYPES[dtype])
        warps = options.pop("num_warps")
        acc = "fp64" if dtype == "fp64" else "fp32"
        sizes = ("channels", "height", "width", "number", "pixel_stride", "channel_stride")
        for name, kernel in (("roi_pool", roi_pool._forward_kernel), ("roi_pool_backward", roi_pool._backward_kernel)):
            features, _, pooled = kernel.arg_names[:3]
            yield (
                f"{name} {dtype} {width}",
                kernel,
                {features: f"*{dtype}", "boxes": f"*{acc}", pooled: f"*{dtype}"},
                dict.fromkeys(sizes, "i32") | dict.fromkeys(("output_size", "sampling_ratio"), "i32")
                | {"spatial_scale": "fp64"},
                {"ALIGNED": True, **options},
                warps,
            )  # fmt: skip
    for function in ("log_iv", "bessel_ratio", "bessel_ratio_grad"):
        options = dict(bessel.LAUNCH)
        warps = options.pop("num_warps")
        yield (
            f"{function} fp32",
            bessel._elementwise_kernel,
            {"nu": "*fp64", "x": "*fp32", "out": "*fp32"},
            {"nu_stride": "i32", "count": "i32"},
            {"FUNCTION": function, **options},
            warps,
        )
    for dtype, nu in itertools.product(("fp32", "fp64"), (0, 63)):
        _, expansion = vmf.expansion_options(nu, DTYPES[dtype])
        options = vmf.ratio_launch_options(DTYPES[dtype])
        warps = options.pop("num_warps")
        yield (
            f"vmf_ratio {dtype} {nu}",
            vmf._ratio_kernel,
            dict.fromkeys(("increments", "kappa", "ratio", "slope"), f"*{dtype}"),
            {"classes": "i32", "v": "fp64"},
            {"WITH_SLOPE": True, **expansion, **options},
            warps,
        )
        # (width, classes of the block, whether it is the first, the last)
        shapes = {
            ("fp32", 63): ((128, 10, 1, 1), (128, 1000, 1, 1), (2048, 4096, 1, 0), (128, 4096, 0, 1)),
            ("fp32", 0): ((2, 1000, 1, 1), (2, 4096, 0, 1)),
            ("fp64", 63): ((128, 512, 0, 1),),
            ("fp64", 0): ((2, 512, 0, 1),),
        }
        for width, classes, first, last in shapes[dtype, nu]:
            options = vmf.launch_options(classes, width, DTYPES[dtype])
            warps = options.pop("num_warps")
            matrices = ("products", "features", "directions", "kappa", "log_prior", "mean_weight", "state", "loss",
                        "gradient")  # fmt: skip
            yield (
                f"vmf_cross_entropy {dtype} {nu} {width} {classes} {'first' * first} {'last' * last}",
                vmf._cross_entropy_kernel,
                dict.fromkeys(matrices, f"*{dtype}") | {"target": "*i64"},
                dict.fromkeys(("stride", "start", "count", "classes", "width"), "i32")
                | dict.fromkeys(("v", "inverse_temperature", "unit"), "fp64")
                | {"ignore_index": "i64"},
                {
                    "MEAN": bool(last),
                    "MEAN_GRADIENT": True,
                    "LABELLED": True,
                    "PRIOR": True,
                    "FIRST": bool(first),
                    "LAST": bool(last),
                    "WITH_GRADIENT": True,
                    **expansion,
                    **options,
                },
                warps,
            )
    for dtype in ("fp32", "fp64"):
        yield (
            f"mean_weight {dtype}",
            mean_weight._mean_weight_kernel,
            {"target": "*i64", "weight": f"*{dtype}"},
            {"rows": "i32", "ignore_index": "i64"},
            {"BLOCK": mean_weight.BLOCK},
            4,
        )
    yield (
        "half_normal", noise._half_normal_kernel, {"out": "*fp32", "seed": "*i64"}, {"columns": "i32"}, {"BLOCK": 1024},
        4,
    )  # fmt: skip


if __name__ == "__main__":
    for label, *case, warps in cases(sys.argv[1]):
        usage = compile_kernel(*case, sys.argv[1], warps)
        limits = {"target": sys.argv[1], "shared_limit": SHARED[sys.argv[1]]}
        print(json.dumps({"kernel": label, **limits, **asdict(usage)}), flush=True)
