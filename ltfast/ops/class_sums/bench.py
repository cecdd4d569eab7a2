"""`class_sums`, beside `index_add_` (atomic on a GPU) and the product with a one-hot matrix."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.class_sums import class_sums
from ltfast.ops.core.bench import Case, Work

SIZES = {
    "small": (256, 100, 128),
    "imagenet-lt": (256, 1000, 128),
    "inat18": (1024, 8142, 128),
    "large": (65536, 1000, 128),
    "million": (16, 1_000_000, 128),
}


def case(device: torch.device, shape: str, rows: int, classes: int, width: int, dtype: torch.dtype) -> Case:
    def ours(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        features, labels = inputs
        return class_sums(features, labels, classes)

    def index_add(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        features, labels = inputs
        sums = torch.zeros(classes, width, device=device).index_add_(0, labels, features.float())
        return sums, torch.bincount(labels, minlength=classes)

    def one_hot(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        features, labels = inputs
        members = F.one_hot(labels, classes)
        return members.T.float() @ features.float(), members.sum(0)

    return Case(
        "class_sums",
        shape,
        f"{rows} x {width}, {classes} classes",
        dtype,
        Work(bytes=rows * (width * dtype.itemsize + 8) + classes * (4 * width + 8)),
        lambda: (torch.randn(rows, width, device=device).to(dtype), torch.randint(classes, (rows,), device=device)),
        {
            "ltfast": lambda: ours,
            "index_add_": lambda: index_add,
            "one-hot": lambda: one_hot,
        },
    )


def cases(device: torch.device) -> Iterator[Case]:
    for shape, size in SIZES.items():
        yield case(device, shape, *size, torch.float32)
    yield case(device, "imagenet-lt", *SIZES["imagenet-lt"], torch.bfloat16)
