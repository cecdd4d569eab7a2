"""Classifier and loss in one, with the rows or the classes split over processes, equal one process."""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distributed.harness import run_processes
from ltfast.losses import LinearAGCLLoss, LinearBalancedBCELoss, LinearLogitAdjustedLoss
from ltfast.ops import (
    class_parallel_linear_agcl,
    class_parallel_linear_balanced_bce,
    class_parallel_linear_cross_entropy,
    linear_agcl,
    linear_balanced_bce,
    linear_cross_entropy,
)
from ltfast.ops.core.collectives import class_ranges, rank
from ltfast.ops.linear import agcl_share, blocks

ROWS, CLASSES, WIDTH = 8, 13, 6


def arguments():
    features, weight = torch.randn(ROWS, WIDTH).double(), torch.randn(CLASSES, WIDTH).double()
    target = torch.randint(CLASSES, (ROWS,))
    target[2] = -100
    return features, weight, torch.randn(CLASSES).double(), target


FORMS = {  # with the classes split, and whole: of a layer, labels, a vector of the classes and options
    "cross_entropy": (
        lambda x, w, b, t, v, o: class_parallel_linear_cross_entropy(x, w, b, t, CLASSES, adjustment=v - 1, **o),
        lambda x, w, b, t, v, o: linear_cross_entropy(x, w, b, t, adjustment=v - 1, **o),
    ),
    "balanced_bce": (
        lambda x, w, b, t, v, o: class_parallel_linear_balanced_bce(x, w, b, t, CLASSES, v, **o),
        lambda x, w, b, t, v, o: linear_balanced_bce(x, w, b, t, v, **o),
    ),
    "agcl": (
        lambda x, w, b, t, v, o: class_parallel_linear_agcl(x, w, t, CLASSES, v, generator=noise_of(x), **o),
        lambda x, w, b, t, v, o: linear_agcl(x, w, t, v, generator=noise_of(x), **o),
    ),
}
OPTIONS = {
    "cross_entropy": [{}, {"label_smoothing": 0.2}],
    "balanced_bce": [{}, {"label_smoothing": 0.2}, {"target_threshold": 0.3, "label_smoothing": 0.1}],
    "agcl": [{}, {"gamma_pos": 2.0, "gamma_neg": 1.7, "weight_neg": 0.4}, {"gamma_neg": 0.0, "margin": 0.0}],
}
# of a loss, options, and whether a block has a few classes alone
SETTINGS = [
    (name, {"reduction": reduction, **options}, few)
    for name in FORMS
    for options in OPTIONS[name]
    for reduction in ("sum", "none")
    for few in ((False, True) if name == "cross_entropy" else (True,))
]


def noise_of(_):
    """The noise is that of the first process."""
    return torch.Generator().manual_seed(3 if rank() == 0 else 70 + rank())


def of_own_classes(number, processes, settings, problems):
    """For each setting, this process's losses and the gradients of its rows and its classes."""
    results = []
    rows, own = slice(number * ROWS // processes, (number + 1) * ROWS // processes), class_ranges(CLASSES)[number]
    classes = slice(own.start, own.stop)
    for (name, options, few), (features, weight, bias, target) in zip(settings, problems, strict=True):
        with ExitStack() as small:
            if few:
                for module in (blocks, agcl_share):
                    small.enter_context(mock.patch.object(module, "FEWEST", 2))
                small.enter_context(mock.patch.dict(blocks.BUDGET, cpu=1))
            layer = [x.clone().requires_grad_() for x in (features[rows], weight[classes], bias[classes])]
            loss = FORMS[name][0](*layer, target[rows], vector_of(bias)[classes], options)
            gradients = torch.autograd.grad(factors(loss, rows), layer, allow_unused=True)
        results.append((loss.detach(), gradients))
    return results


def vector_of(bias):
    return bias.flip(0).abs()


def factors(loss, rows):
    """The rows' losses have different weights."""
    return (loss * torch.arange(1.0, 1 + ROWS)[rows]).sum() if loss.dim() else loss


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_classes_split_over_processes(processes):
    problems = [arguments() for _ in SETTINGS]
    results = run_processes(of_own_classes, processes, processes, SETTINGS, problems)
    for number, ((name, options, _), (features, weight, bias, target)) in enumerate(
        zip(SETTINGS, problems, strict=True)
    ):
        parts = [result[number] for result in results]
        layer = [x.requires_grad_() for x in (features, weight, bias)]
        loss = FORMS[name][1](*layer, target, vector_of(bias.detach()), options)
        losses = [part[0] for part in parts]
        whole = torch.cat(losses) if options["reduction"] == "none" else torch.stack(losses).sum()
        torch.testing.assert_close(whole, loss.detach(), rtol=1e-10, atol=1e-12)
        for place, gradient in enumerate(torch.autograd.grad(factors(loss, slice(None)), layer, allow_unused=True)):
            found = [part[1][place] for part in parts]
            if gradient is None:
                assert found == [None] * processes
            else:
                torch.testing.assert_close(torch.cat(found), gradient, rtol=1e-10, atol=1e-12)


MODULES = {
    "logit_adjusted": lambda **options: LinearLogitAdjustedLoss(range(1, CLASSES + 1), label_smoothing=0.1, **options),
    "balanced_bce": lambda **options: LinearBalancedBCELoss(range(1, CLASSES + 1), label_smoothing=0.1, **options),
    "agcl": lambda **options: LinearAGCLLoss(range(1, CLASSES + 1), **options),
}


def of_modules(number, processes, features, weight, bias, target):
    """For each module, this process's loss and the gradients of its rows and its classes."""
    results, split = [], processes > 1
    rows, own = slice(number * ROWS // processes, (number + 1) * ROWS // processes), range(CLASSES)
    own = class_ranges(CLASSES)[number] if split else own
    classes = slice(own.start, own.stop)
    for name, make in MODULES.items():
        layer = [x.clone().requires_grad_() for x in (features[rows], weight[classes], bias[classes])]
        torch.manual_seed(3 + number)  # the noise is that of the first process
        loss = make(class_parallel=split)(*layer[:2], None if name == "agcl" else layer[2], target[rows])
        results.append((loss.detach(), torch.autograd.grad(loss, layer, allow_unused=True)))
    return results


@pytest.mark.parametrize("processes", [2, 4])
def test_modules_with_the_classes_split(processes):
    features, weight, bias, target = arguments()
    target[2] = 4  # the mean of the processes' means is the mean if they ignore equally many labels
    whole = of_modules(0, 1, features, weight, bias, target)
    parts = run_processes(of_modules, processes, processes, features, weight, bias, target)
    for place, (loss, gradients) in enumerate(whole):
        found = [part[place] for part in parts]
        torch.testing.assert_close(torch.stack([one[0] for one in found]).mean(), loss, rtol=1e-10, atol=1e-12)
        for number, gradient in enumerate(gradients):
            if gradient is None:
                assert all(one[1][number] is None for one in found)
                continue
            joined = torch.cat([one[1][number] for one in found]) / processes
            torch.testing.assert_close(joined, gradient, rtol=1e-10, atol=1e-12)


class Model(nn.Module):
    """A backbone and a classifier whose product is in the loss."""

    def __init__(self):
        super().__init__()
        self.backbone, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.criterion = LinearBalancedBCELoss(range(1, CLASSES + 1))

    def forward(self, images, target):
        return self.criterion(self.backbone(images), self.classifier.weight, self.classifier.bias, target)


def of_own_rows(rank, processes, images, target):
    torch.manual_seed(0)
    model = Model().double()
    if processes > 1:
        model = DistributedDataParallel(model)
    loss = model(images.chunk(processes)[rank], target.chunk(processes)[rank])
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_split_over_processes(processes):
    images, target = torch.randn(ROWS, WIDTH).double(), torch.randint(CLASSES, (ROWS,))
    loss, gradients = of_own_rows(0, 1, images, target)
    parts = run_processes(of_own_rows, processes, processes, images, target)
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(), loss)
    for part in parts:
        torch.testing.assert_close(part[1], gradients, rtol=1e-10, atol=1e-12)
