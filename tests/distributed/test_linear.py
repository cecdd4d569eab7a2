"""Classifier and loss in one, with the rows or the classes split over processes, equal one process."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distributed.harness import run_processes
from ltfast.losses import LinearBalancedBCELoss
from ltfast.ops import class_parallel_linear_cross_entropy, linear_cross_entropy
from ltfast.ops.core.collectives import class_ranges

ROWS, CLASSES, WIDTH = 8, 13, 6


def arguments():
    features, weight = torch.randn(ROWS, WIDTH).double(), torch.randn(CLASSES, WIDTH).double()
    target = torch.randint(CLASSES, (ROWS,))
    target[2] = -100
    return features, weight, torch.randn(CLASSES).double(), target


def of_own_classes(rank, processes, features, weight, bias, target, options):
    """This process's losses and the gradients of its rows and its classes."""
    rows, own = slice(rank * ROWS // processes, (rank + 1) * ROWS // processes), class_ranges(CLASSES)[rank]
    classes = slice(own.start, own.stop)
    layer = [x.clone().requires_grad_() for x in (features[rows], weight[classes], bias[classes])]
    adjustment = bias.flip(0)[classes]
    loss = class_parallel_linear_cross_entropy(*layer, target[rows], CLASSES, adjustment=adjustment, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), layer)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classes_split_over_processes(processes, reduction, smoothing):
    options = {"label_smoothing": smoothing, "reduction": reduction}
    features, weight, bias, target = arguments()
    parts = run_processes(of_own_classes, processes, processes, features, weight, bias, target, options)
    layer = [x.requires_grad_() for x in (features, weight, bias)]
    loss = linear_cross_entropy(*layer, target, adjustment=bias.detach().flip(0), **options)
    losses = [part[0] for part in parts]
    whole = torch.cat(losses) if reduction == "none" else torch.stack(losses).sum()
    torch.testing.assert_close(whole, loss.detach(), rtol=1e-10, atol=1e-12)
    for place, gradient in enumerate(torch.autograd.grad(loss.sum(), layer)):
        joined = torch.cat([part[1][place] for part in parts])
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
