import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltfast import losses

COUNTS = [50, 20, 10, 5]
# loss with logits, the same with the layer inside, and what both take
PAIRS = {
    "cross_entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), losses.LinearCrossEntropyLoss(label_smoothing=0.1)),
    "weighted": (
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0])),
        losses.LinearCrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0])),
    ),
    "logit_adjusted": (losses.LogitAdjustedLoss(COUNTS, tau=1.5), losses.LinearLogitAdjustedLoss(COUNTS, tau=1.5)),
    "balanced_bce": (
        losses.BalancedBCELoss(COUNTS, label_smoothing=0.1),
        losses.LinearBalancedBCELoss(COUNTS, label_smoothing=0.1),
    ),
    "agcl": (losses.AGCLLoss(COUNTS), losses.LinearAGCLLoss(COUNTS)),
}


def parameters():
    torch.manual_seed(0)
    return [torch.randn(*shape, requires_grad=True) for shape in ((9, 6), (4, 6), (4,))]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradients_are_those_of_layer_and_loss(name, training):
    with_logits, without = (copy.deepcopy(loss).train(training) for loss in PAIRS[name])
    target = torch.tensor([0, 1, 2, 3, 0, 0, -100, 1, 2])
    results = []
    for loss in (with_logits, without):
        features, weight, bias = parameters()
        torch.manual_seed(1)  # of the noise
        if name == "agcl" and loss is with_logits:
            value = loss(F.linear(F.normalize(features), F.normalize(weight)), target)
        elif loss is with_logits:
            value = loss(F.linear(features, weight, bias), target)
        else:
            value = loss(features, weight, None if name == "agcl" else bias, target)
        value.backward()
        results.append((value.detach(), features.grad, weight.grad, bias.grad))
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["logit_adjusted", "balanced_bce", "agcl"])
def test_class_counts_fix_the_number_of_rows(name):
    features, weight, _ = parameters()
    with pytest.raises(ValueError, match=r"weight has shape \(3, 6\): expected \(4, width\), a row for each of class"):
        PAIRS[name][1](features, weight[:3], None, torch.zeros(9, dtype=torch.int64))


def test_a_cosine_classifier_has_no_bias():
    features, weight, bias = parameters()
    with pytest.raises(ValueError, match="bias is not None: expected None"):
        PAIRS["agcl"][1](features, weight, bias, torch.zeros(9, dtype=torch.int64))


def test_agcl_takes_all_classes():
    features, weight, _ = parameters()
    criterion = losses.LinearAGCLLoss(COUNTS, class_parallel=True)
    with pytest.raises(ValueError, match="class_parallel is True: expected False"):
        criterion(features, weight, None, torch.zeros(9, dtype=torch.int64))
