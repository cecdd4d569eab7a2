"""The cases of the functions whose classes are split over the processes. Their kernels are those of other ops."""

from torch import Tensor

from ltfast.ops.core.cases import Example, OpCases, Sizes
from ltfast.ops.linear.cases import layer
from ltfast.ops.parallel import (
    class_parallel_agcl,
    class_parallel_linear_agcl,
    class_parallel_linear_balanced_bce,
    class_parallel_linear_cross_entropy,
    class_parallel_vmf_cross_entropy,
)
from ltfast.ops.vmf.cases import statistics


def agcl_example(sizes: Sizes) -> Example:
    def function(x: Tensor, labels: Tensor) -> Tensor:
        return class_parallel_agcl(x, labels, sizes.classes)

    return Example(function, sizes.rand(sizes.rows, sizes.classes), sizes.labels())


def vmf_example(sizes: Sizes) -> Example:
    directions, kappa = statistics(sizes)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return class_parallel_vmf_cross_entropy(x, labels, directions, kappa, sizes.classes)

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def linear_example(sizes: Sizes) -> Example:
    weight, bias = sizes.randn(sizes.classes, sizes.width), sizes.randn(sizes.classes)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return class_parallel_linear_cross_entropy(
            x, weight.to(x.dtype), bias.to(x.dtype), labels, sizes.classes, label_smoothing=0.1
        )

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def linear_balanced_bce_example(sizes: Sizes) -> Example:
    weight, bias, adjustment = layer(sizes)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return class_parallel_linear_balanced_bce(
            x, weight.to(x.dtype), bias.to(x.dtype), labels, sizes.classes, adjustment, label_smoothing=0.1
        )

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


def linear_agcl_example(sizes: Sizes) -> Example:
    weight = sizes.randn(sizes.classes, sizes.width)

    def function(x: Tensor, labels: Tensor) -> Tensor:
        return class_parallel_linear_agcl(x, weight.to(x.dtype), labels, sizes.classes)

    return Example(function, sizes.rand(sizes.rows, sizes.width), sizes.labels())


CASES = OpCases(
    {
        "class_parallel_agcl": agcl_example,
        "class_parallel_linear_agcl": linear_agcl_example,
        "class_parallel_linear_balanced_bce": linear_balanced_bce_example,
        "class_parallel_linear_cross_entropy": linear_example,
        "class_parallel_vmf_cross_entropy": vmf_example,
    }
)
