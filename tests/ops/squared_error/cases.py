from collections.abc import Iterator

import torch
from ltfast.ops.squared_error import squared_error
from ltfast.ops.squared_error.settings import SquaredErrorSettings
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.core.bench import Bench, Case, Work, backward
from ltfast.ops.core.cases import DTYPES, ROWS, Example, OpCases, Sizes, labels_on_gpu, on_gpu


def example(sizes: Sizes) -> Example:
    return Example(squared_error, sizes.rand(sizes.rows, sizes.classes), sizes.labels())


def launches() -> Iterator[str]:
    from ltfast.ops.squared_error import triton

    for name, dtype in DTYPES.items():
        settings = SquaredErrorSettings(1.0, -100, "mean")
        triton.squared_error(on_gpu(ROWS, 1000, dtype=dtype), labels_on_gpu(), settings, True, 1.0)
        yield f"squared_error {name}"


def published(logits: Tensor, target: Tensor) -> Tensor:
    return (logits - F.one_hot(target, logits.shape[1])).square().sum(1).mean()


def cases(device: torch.device) -> Iterator[Case]:
    yield Case(
        "squared_error",
        "small",
        "32 x 10",
        torch.float32,
        Work(bytes=2 * 32 * 10 * 4),
        lambda: (torch.randn(32, 10, device=device, requires_grad=True), torch.randint(10, (32,), device=device)),
        {"ltfast": backward(lambda: squared_error), "eager": backward(lambda: published)},
    )


CASES = OpCases({"squared_error": example}, launches=launches, bench={"squared_error": Bench(cases)})
