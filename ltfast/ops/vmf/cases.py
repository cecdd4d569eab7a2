"""The cases of ``vmf_logits`` and ``vmf_cross_entropy``."""

import itertools
from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.core.bench import Bench
from ltfast.ops.core.cases import DTYPES, ROWS, Example, OpCases, Sizes, labels_on_gpu, on_gpu
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.vmf import bench, vmf_cross_entropy, vmf_logits
from ltfast.ops.vmf.settings import VmfSettings


def statistics(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """The mean directions and the concentrations of the classes. Directions rounded to half precision would not have
    length 1, and opposite features could have a negative k'^2."""
    directions = sizes.randn(sizes.classes, sizes.width).to(accumulator(sizes.dtype))
    return F.normalize(directions), sizes.rand(sizes.classes) * 20


def logits_example(sizes: Sizes) -> Example:
    directions, kappa = statistics(sizes)

    def function(x: Tensor, _: Tensor) -> Tensor:
        return vmf_logits(x, directions, kappa).square().sum()

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def cross_entropy_example(sizes: Sizes) -> Example:
    directions, kappa = statistics(sizes)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return vmf_cross_entropy(x, labels, directions, kappa)

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.vmf import triton

    for dtype, width in itertools.product(("fp32", "fp64"), (2, 128)):
        kappa = on_gpu(1000, dtype=DTYPES[dtype])
        triton.vmf_ratio(on_gpu(ROWS, 1000, dtype=DTYPES[dtype]), kappa, width / 2 - 1, True)
        yield f"vmf_ratio {dtype} {width}"
    # one block of classes; and several: the first of them, one between, and the last
    for dtype, width, classes in (
        ("fp32", 128, 10), ("fp32", 128, 1000), ("fp32", 2048, 9000), ("fp32", 2, 1000), ("fp32", 2, 9000),
        ("fp64", 128, 1000), ("fp64", 2, 1000),
    ):  # fmt: skip
        z, mu = (on_gpu(rows, width, dtype=DTYPES[dtype]) for rows in (ROWS, classes))
        kappa, log_prior = on_gpu(classes, dtype=DTYPES[dtype]), on_gpu(classes, dtype=DTYPES[dtype])
        settings = VmfSettings(0.1, -100, "mean")
        triton.vmf_cross_entropy(z, labels_on_gpu(), mu, kappa, log_prior, settings, True, 1.0)
        yield f"vmf_cross_entropy {dtype} {width} {classes}"


CASES = OpCases(
    {"vmf_logits": logits_example, "vmf_cross_entropy": cross_entropy_example},
    launches=launches,
    bench={"vmf_cross_entropy": Bench(bench.cases, bench.growth)},
)
