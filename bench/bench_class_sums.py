"""``class_sums`` beside ``index_add_`` (atomic on a GPU) and the product with a one-hot matrix."""

import pytest
import torch
from torch.nn import functional as F

from ltfast.ops import class_sums


@pytest.mark.parametrize("implementation", ["ltfast", "index_add", "one-hot"])
@pytest.mark.parametrize(("rows", "classes", "width"), [(256, 1000, 128), (2048, 8142, 128), (65536, 1000, 128)])
def test_class_sums(step, device, rows, classes, width, implementation):
    features = torch.randn(rows, width, device=device)
    labels = torch.randint(classes, (rows,), device=device)

    def index_add():
        sums = features.new_zeros(classes, width).index_add_(0, labels, features)
        return sums, torch.bincount(labels, minlength=classes)

    def one_hot():
        members = F.one_hot(labels, classes).to(features.dtype)
        return members.T @ features, members.sum(0)

    calls = {"ltfast": lambda: class_sums(features, labels, classes), "index_add": index_add, "one-hot": one_hot}
    name = f"class_sums {rows} x {width}, {classes} classes float32"
    step(calls[implementation], group=name, implementation=implementation, moved=4 * width * (rows + classes))
