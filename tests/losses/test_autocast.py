"""Tests every loss with its backward pass inside ``torch.autocast`` too."""

import pytest
import torch
from torch.nn import functional as F

import ltfast
from ltfast.losses import (
    AGCLLoss,
    BalancedBCELoss,
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    CompensationLoss,
    DSCLLoss,
    FocalLoss,
    GCLLoss,
    LADELoss,
    LDAMLoss,
    LogitAdjustedLoss,
    MemoryQueue,
    PBSDLoss,
    ProCoLoss,
    SeesawLoss,
    SupConQueueLoss,
    VSLoss,
)
from ltfast.ops import vmf_logits

COUNTS, ROWS, WIDTH = [50, 20, 5, 2], 8, 6


def unit(*shape):
    return F.normalize(torch.randn(*shape, WIDTH), dim=-1)


def labels(rows=ROWS):
    return torch.randint(len(COUNTS), (rows,))


def of_logits(loss):
    target = labels()
    return lambda x: loss(x, target), torch.rand(ROWS, len(COUNTS))


def of_features(method="__call__"):
    loss = ProCoLoss(len(COUNTS), WIDTH, class_counts=COUNTS)
    loss.update(unit(30), labels(30))
    target = labels()
    if method == "logits":
        return lambda x: F.cross_entropy(loss.logits(x), target), unit(ROWS)
    return lambda x: loss(x, target), unit(ROWS)


def of_queue(loss, argument="query"):
    queue = MemoryQueue(WIDTH, 32, num_classes=len(COUNTS))
    queue.enqueue(unit(20), labels(20))
    other, target = unit(ROWS), labels()
    if argument == "query":
        return lambda x: loss(x, other, target, queue), unit(ROWS)
    if argument == "key":
        return lambda x: loss(other, x, target, queue), unit(ROWS)
    return lambda x: loss(other[:, None], x, other, queue), unit(ROWS, 1)


LOSSES = {
    "agcl": lambda: of_logits(AGCLLoss(COUNTS, noise_mul=0.0)),
    "balanced_bce": lambda: of_logits(BalancedBCELoss(COUNTS)),
    "logit_adjusted": lambda: of_logits(LogitAdjustedLoss(COUNTS)),
    "balanced_softmax": lambda: of_logits(BalancedSoftmaxLoss(COUNTS)),
    "class_balanced": lambda: of_logits(ClassBalancedLoss(COUNTS)),
    "class_balanced, focal": lambda: of_logits(ClassBalancedLoss(COUNTS, loss="focal")),
    "focal": lambda: of_logits(FocalLoss(COUNTS)),
    "gcl": lambda: of_logits(GCLLoss(COUNTS, noise_mul=0.0)),
    "lade": lambda: of_logits(LADELoss(COUNTS)),
    "seesaw": lambda: of_logits(SeesawLoss(COUNTS).eval()),
    "vs": lambda: of_logits(VSLoss(COUNTS)),
    "compensation": lambda: of_logits(CompensationLoss(COUNTS, 3)),
    "ldam": lambda: of_logits(LDAMLoss(COUNTS)),
    "proco": of_features,
    "proco, logits": lambda: of_features("logits"),
    "supcon": lambda: of_queue(SupConQueueLoss()),
    "dscl": lambda: of_queue(DSCLLoss()),
    "dscl, key": lambda: of_queue(DSCLLoss(), "key"),
    "pbsd": lambda: of_queue(PBSDLoss(), "cropped"),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_backward_inside_autocast(backend, name, dtype):
    loss_of, x = LOSSES[name]()
    x.requires_grad_()
    with ltfast.backend(backend):
        loss = loss_of(x)
        (expected,) = torch.autograd.grad(loss, x)
        with torch.autocast("cpu", dtype):
            inside = loss_of(x)
            (gradient,) = torch.autograd.grad(inside, x)
    assert inside.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(inside, loss, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
    assert (gradient - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_concentrated_classes_overflow_no_product_inside_autocast(backend, dtype):
    """The concentration of a class with one image is the largest; times the direction, it exceeds float16."""
    directions, target, x = unit(len(COUNTS)), labels(), unit(ROWS).requires_grad_()
    kappa = torch.full((len(COUNTS),), 1e5)

    def gradient():
        return torch.autograd.grad(F.cross_entropy(vmf_logits(x, directions, kappa), target), x)[0]

    with ltfast.backend(backend):
        expected = gradient()
        with torch.autocast("cpu", dtype):
            inside = gradient()
    assert (inside - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()
