"""The cases of the functions that have a linear layer inside. Their kernels are those of other ops."""

from torch import Tensor

from ltfast.ops.core.cases import Example, OpCases, Sizes
from ltfast.ops.linear import bench, linear_agcl, linear_balanced_bce


def agcl_example(sizes: Sizes) -> Example:
    weight = sizes.randn(sizes.classes, sizes.width)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return linear_agcl(x, weight.to(x.dtype), labels)

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def balanced_bce_example(sizes: Sizes) -> Example:
    weight, bias, adjustment = (
        sizes.randn(sizes.classes, sizes.width),
        sizes.randn(sizes.classes),
        sizes.randn(sizes.classes),
    )

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return linear_balanced_bce(x, weight.to(x.dtype), bias.to(x.dtype), labels, adjustment)

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


CASES = OpCases({"linear_agcl": agcl_example, "linear_balanced_bce": balanced_bce_example}, bench=bench.BENCHES)
