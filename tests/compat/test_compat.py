"""Compares the losses with the authors' signatures to plain implementations of their formulas."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltfast.compat import (
    AGCL,
    BalancedSoftmax,
    BCE_loss,
    FocalLoss,
    LDAMLoss,
    LogitAdjust,
    VSLoss,
    balanced_softmax_loss,
)
from ltfast.compat.balanced_softmax import create_loss
from ltfast.losses import AGCLLoss

COUNTS = [1000, 300, 100, 50, 20, 5]
ARGS = SimpleNamespace(cls_num=COUNTS, smoothing=0.1)


def batch(rows=16):
    return torch.rand(rows, len(COUNTS)) * 2 - 1, torch.randint(len(COUNTS), (rows,))


def seeded(loss, *arguments):
    torch.manual_seed(0)
    return loss(*arguments)


def test_agcl_as_the_training_script_builds_it():
    cosine, target = batch()
    ours = AGCL(
        cls_num_list=COUNTS, m=0.1, s=20, weight=None, train_cls=False, noise_mul=0.5, gamma=4.0, gamma_pos=0.5,
        gamma_neg=8.0,
    )  # fmt: skip
    assert seeded(ours, cosine, target) == seeded(AGCLLoss(COUNTS, gamma_pos=0.5, gamma_neg=8.0), cosine, target)


def test_agcl_has_the_authors_defaults():
    cosine, target = batch()
    expected = AGCLLoss(COUNTS, margin=0.5, scale=30, noise_mul=1.0, gamma_pos=0.0, gamma_neg=4.0)
    assert seeded(AGCL(COUNTS), cosine, target) == seeded(expected, cosine, target)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2, 3, 4, 5, 6])])
def test_agcl_train_cls_is_a_focal_loss(weight):
    cosine, target = batch()
    loss = AGCL([7] * 6, m=0.2, s=5, weight=weight, train_cls=True, gamma=2.0)  # balanced classes have no noise
    cross_entropy = F.cross_entropy(5 * (cosine - 0.2 * F.one_hot(target, 6)), target, weight=weight, reduction="none")
    expected = ((1 - (-cross_entropy).exp()) ** 2 * cross_entropy).mean()
    torch.testing.assert_close(loss(cosine, target), expected)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2, 3, 4, 5, 6])])
def test_logit_adjust(weight):
    logits, target = batch()
    adjusted = logits + 2 * (torch.tensor(COUNTS) / sum(COUNTS)).log()
    expected = F.cross_entropy(adjusted, target, weight=weight)
    torch.testing.assert_close(LogitAdjust(COUNTS, tau=2, weight=weight)(logits, target), expected)


def published_ldam(x, target, max_m, weight, s):
    """The authors' steps: a mask of the labels, the margins of the rows, and a choice by the mask."""
    margins = 1 / np.sqrt(np.sqrt(COUNTS))
    margins = torch.tensor(margins * (max_m / margins.max())).to(x.dtype)
    index = torch.zeros_like(x, dtype=torch.bool).scatter(1, target.view(-1, 1), True)
    of_rows = (margins[None, :] @ index.to(x.dtype).T).view(-1, 1)
    return F.cross_entropy(s * torch.where(index, x - of_rows, x), target, weight=weight)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2, 3, 4, 5, 6])])
@pytest.mark.parametrize("options", [{}, {"max_m": 0.3, "s": 20}], ids=str)
def test_ldam(weight, options):
    x, target = batch()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss = LDAMLoss(cls_num_list=COUNTS, weight=weight, **options)(ours, target)
    expected = published_ldam(theirs, target, options.get("max_m", 0.5), weight, options.get("s", 30))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_ldam_is_built_anew_with_the_weights_of_an_epoch():
    """As in the authors' script, which weights the classes by their effective number from epoch 160."""
    x, target = batch()
    for beta in (0, 0.9999):
        effective = (1 - beta) / (1 - np.power(beta, COUNTS))
        weight = torch.FloatTensor(effective / effective.sum() * len(COUNTS))
        loss = LDAMLoss(cls_num_list=COUNTS, max_m=0.5, s=30, weight=weight)(x, target)
        torch.testing.assert_close(loss, published_ldam(x, target, 0.5, weight, 30))


@pytest.mark.parametrize(("options", "message"), [({"s": 0}, "s is 0"), ({"max_m": -1}, "max_m is -1")])
def test_ldam_names_the_authors_arguments(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LDAMLoss(COUNTS, **options)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.1, 0.2, 3, 4, 5, 6])])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal(weight, gamma):
    """A class weight counts in the factor too, as in the authors' code."""
    x, target = batch()
    ours, theirs = (5 * x).requires_grad_(), (5 * x).double().requires_grad_()
    loss = FocalLoss(weight=weight, gamma=gamma)(ours, target)
    of_rows = F.cross_entropy(theirs, target, reduction="none", weight=None if weight is None else weight.double())
    expected = ((1 - torch.exp(-of_rows)) ** gamma * of_rows).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_focal_at_a_probability_of_1():
    x = torch.tensor([[200.0, 0, 0], [0.0, 1, 0]], requires_grad=True)
    loss = FocalLoss(gamma=0.5)(x, torch.tensor([0, 1]))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_balanced_softmax(reduction, tmp_path):
    x, target = batch()
    file = tmp_path / "cls_freq.json"
    file.write_text(json.dumps(COUNTS))
    expected = F.cross_entropy(x + torch.tensor(COUNTS).log(), target, reduction=reduction)
    for module in (BalancedSoftmax(str(file)), create_loss(file)):
        torch.testing.assert_close(module(x, target, reduction), expected)
        torch.testing.assert_close(module(input=x, label=target), expected.mean() / (16 if reduction == "sum" else 1))
    torch.testing.assert_close(balanced_softmax_loss(target, x, torch.tensor(COUNTS), reduction), expected)


def test_frequencies_that_are_none(tmp_path):
    file = tmp_path / "cls_freq.json"
    for text, error, message in (
        ("[1, 2", ValueError, "freq_path is .*cls_freq.json': expected a JSON list of counts, got"),
        ("[1, 0]", ValueError, r"freq_path .*cls_freq.json'\[1\] is 0"),
        ("3", TypeError, "freq_path .*cls_freq.json' is of type int"),
    ):
        file.write_text(text)
        with pytest.raises(error, match=message):
            BalancedSoftmax(file)
    with pytest.raises(FileNotFoundError):
        BalancedSoftmax(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"sample_per_class\[1\] is 0"):
        balanced_softmax_loss(torch.tensor([0]), torch.rand(1, 2), [1, 0], "mean")


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2, 3, 4, 5, 6])])
@pytest.mark.parametrize("options", [{}, {"gamma": 0.1, "tau": 1.5}], ids=str)
def test_vs(weight, options):
    x, target = batch()
    delta = (1 / np.array(COUNTS)) ** options.get("gamma", 0.3)
    iota = options.get("tau", 1.0) * np.log(np.array(COUNTS) / sum(COUNTS))
    scores = x / torch.tensor(delta / delta.min()) + torch.tensor(iota)
    expected = F.cross_entropy(scores, target, weight=None if weight is None else weight.double())
    loss = VSLoss(cls_num_list=COUNTS, weight=weight, **options)(x, target)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-6)


def published_bce(x, target, kind, threshold, reduction, pos_weight):
    """C times the elementwise reduction, with labels smoothed as in timm."""
    classes = x.shape[1]
    if target.dim() == 1:
        target = F.one_hot(target, classes) * (1 - ARGS.smoothing) + ARGS.smoothing / classes
    if threshold is not None:
        target = (target > threshold).float()
    weight = None
    if kind == "Bal":
        prior = torch.tensor(COUNTS) / sum(COUNTS)
        x = x + prior.log() - (1 - prior).log()
    if kind == "CB":
        weight = 0.0001 / (1 - 0.9999 ** torch.tensor(COUNTS).double())
        weight = (weight / weight.sum() * classes).float()
    return classes * F.binary_cross_entropy_with_logits(x, target, weight, reduction=reduction, pos_weight=pos_weight)


@pytest.mark.parametrize("kind", ["Bal", "CB", None])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("pos_weight", [None, torch.tensor([1.0, 2, 3, 4, 5, 6])])
def test_bce_loss(kind, reduction, threshold, soft, pos_weight):
    x, target = batch()
    target = torch.rand_like(x) if soft else target
    loss = BCE_loss(ARGS, threshold, type=kind, reduction=reduction, pos_weight=pos_weight)
    torch.testing.assert_close(loss(x, target), published_bce(x, target, kind, threshold, reduction, pos_weight))


def test_bce_loss_takes_a_column_of_labels():
    x, target = batch()
    loss = BCE_loss(ARGS, type="Bal")
    assert loss(x, target[:, None]) == loss(x, target)


@pytest.mark.parametrize("options", [{"type": "bal"}, {"reduction": "median"}], ids=str)
def test_bce_loss_refuses_what_it_does_not_know(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is '{value}'"):
        BCE_loss(ARGS, **options)
