"""The cases of the functions that have a linear layer inside. Their kernels are those of other ops."""

from torch import Tensor

from ltfast.ops.core.cases import Example, OpCases, Sizes
from ltfast.ops.linear import bench, linear_agcl, linear_balanced_bce, linear_cross_entropy


def agcl_example(sizes: Sizes) -> Example:
    weight = sizes.randn(sizes.classes, sizes.width)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return linear_agcl(x, weight.to(x.dtype), labels)

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def layer(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias, and another vector of the classes."""
    return sizes.randn(sizes.classes, sizes.width), sizes.randn(sizes.classes), sizes.randn(sizes.classes)


def balanced_bce_example(sizes: Sizes) -> Example:
    weight, bias, adjustment = layer(sizes)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return linear_balanced_bce(x, weight.to(x.dtype), bias.to(x.dtype), labels, adjustment)

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def cross_entropy_example(sizes: Sizes) -> Example:
    weight, bias, adjustment = layer(sizes)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight.to(x.dtype), bias.to(x.dtype), labels, adjustment=adjustment)

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


EXAMPLES = {
    "linear_agcl": agcl_example,
    "linear_balanced_bce": balanced_bce_example,
    "linear_cross_entropy": cross_entropy_example,
}
CASES = OpCases(EXAMPLES, bench=bench.BENCHES)
