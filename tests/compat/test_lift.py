"""The losses with LIFT's names: each against LIFT's code, restated step by step in float64."""

import inspect
import math

import pytest
import torch
from torch.nn import functional as F

import ltfast
from ltfast.compat import lift

COUNTS = torch.tensor([1000.0, 300, 100, 50, 20, 5])  # a tensor, as in LIFT's trainer
N = COUNTS.double()
PRIOR = N / N.sum()
CLASSES = len(COUNTS)


def focal(logit, target, weight=None, gamma=2.0):
    of_rows = F.cross_entropy(logit, target, reduction="none", weight=weight)
    return ((1 - torch.exp(-of_rows)) ** gamma * of_rows).mean()


def ldam(logit, target, max_m=0.5, s=30):
    margins = 1 / torch.sqrt(torch.sqrt(N))
    margins = margins * (max_m / margins.max())
    return F.cross_entropy(logit - s * margins[target][:, None] * F.one_hot(target, CLASSES), target)


def class_balanced(logit, target, beta=0.9999):
    weight = (1 - beta) / (1 - beta**N)
    return F.cross_entropy(logit, target, weight=weight / weight.mean())


def generalized_reweight(logit, target, exp_scale=1.0):
    weight = 1 / PRIOR**exp_scale
    return F.cross_entropy(logit, target, weight=weight / weight.mean())


def logit_adjusted(logit, target, tau=1.0):
    return F.cross_entropy(logit + tau * PRIOR.log(), target)


def lade(logit, target, remine_lambda=0.1, estim_loss_weight=0.1):
    own = logit.T * (target == torch.arange(CLASSES).view(-1, 1))
    number = (target == torch.arange(CLASSES).view(-1, 1)).sum(-1)
    spread = (logit - torch.log(PRIOR + 1e-9) + math.log(1 / CLASSES + 1e-9)).T
    second = torch.logsumexp(spread, -1) - math.log(len(logit))
    estimate = own.sum(-1) / (number + 1e-8) - second - remine_lambda * second**2
    return logit_adjusted(logit, target) - estim_loss_weight * (estimate * PRIOR).sum()


def vs(logit, target, gamma=0.3, tau=1.0):
    return F.cross_entropy(logit / (N.max() / N) ** gamma + tau * PRIOR.log(), target)


WEIGHT = torch.tensor([1.0, 2, 3, 4, 5, 6])
CASES = [
    (lift.FocalLoss, focal, {}),
    (lift.FocalLoss, focal, {"weight": WEIGHT, "gamma": 0.5}),
    (lift.LDAMLoss, ldam, {}),
    (lift.LDAMLoss, ldam, {"max_m": 0.3, "s": 25}),
    (lift.ClassBalancedLoss, class_balanced, {}),
    (lift.ClassBalancedLoss, class_balanced, {"beta": 0.99}),
    (lift.GeneralizedReweightLoss, generalized_reweight, {}),
    (lift.GeneralizedReweightLoss, generalized_reweight, {"exp_scale": 0.4}),
    (lift.BalancedSoftmaxLoss, logit_adjusted, {}),
    (lift.LogitAdjustedLoss, logit_adjusted, {}),
    (lift.LogitAdjustedLoss, logit_adjusted, {"tau": 1.5}),
    (lift.LADELoss, lade, {}),
    (lift.LADELoss, lade, {"remine_lambda": 0.5, "estim_loss_weight": 1.0}),
    (lift.VSLoss, vs, {}),
    (lift.VSLoss, vs, {"gamma": 0.1, "tau": 1.3}),
]


@pytest.mark.filterwarnings("error")  # LDAM's logits are no cosines
@pytest.mark.parametrize(("loss", "theirs", "options"), CASES)
def test_losses(loss, theirs, options):
    logit = torch.randn(32, CLASSES, dtype=torch.float64) * 5
    target = torch.randint(CLASSES, (32,))
    ours = loss(**options) if loss is lift.FocalLoss else loss(cls_num_list=COUNTS, **options)
    doubled = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    outcomes = []
    for call, more in ((ours, {}), (theirs, doubled)):
        x = logit.clone().requires_grad_()
        value = call(x, target, **more)
        outcomes.append((value.detach(), torch.autograd.grad(value, x)[0]))
    (value, gradient), (expected, expected_gradient) = outcomes
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_one_import_brings_them_all():
    names = {}
    exec("from ltfast.compat.lift import *", names)
    found = {name for name, value in names.items() if inspect.isclass(value)}
    assert found == {loss.__name__ for loss, _, _ in CASES}
    assert ltfast.compat.FocalLoss().gamma == 0  # LDAM-DRW's default; LIFT's is 2


def test_messages_have_the_names_of_the_arguments():
    for loss in {loss for loss, _, _ in CASES}:
        made = loss() if loss is lift.FocalLoss else loss(COUNTS)
        with pytest.raises(ValueError, match=r"^logit has shape \(6,\)"):
            made(torch.rand(CLASSES), torch.tensor(0))
        if loss is not lift.FocalLoss:
            with pytest.raises(ValueError, match=r"^logit has shape \(2, 4\)"):
                made(torch.rand(2, 4), torch.tensor([0, 1]))
            with pytest.raises(ValueError, match=r"^cls_num_list\[1\] is 0"):
                loss([4, 0])
