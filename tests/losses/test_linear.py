import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltfast import losses
from ltfast.losses.linear import is_linear, linear_form

COUNTS = [50, 20, 10, 5]
# loss with logits, the same with the layer inside, and what both take
PAIRS = {
    "cross_entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), losses.LinearCrossEntropyLoss(label_smoothing=0.1)),
    "weighted": (
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0])),
        losses.LinearCrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0])),
    ),
    "logit_adjusted": (losses.LogitAdjustedLoss(COUNTS, tau=1.5), losses.LinearLogitAdjustedLoss(COUNTS, tau=1.5)),
    "compensation": (losses.CompensationLoss(COUNTS, 3), losses.LinearCompensationLoss(COUNTS, 3)),
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


@pytest.mark.parametrize("name", ["logit_adjusted", "compensation", "balanced_bce", "agcl"])
def test_class_counts_fix_the_number_of_rows(name):
    features, weight, _ = parameters()
    with pytest.raises(ValueError, match=r"weight has shape \(3, 6\): expected \(4, width\), a row for each of class"):
        PAIRS[name][1](features, weight[:3], None, torch.zeros(9, dtype=torch.int64))


def test_a_cosine_classifier_has_no_bias():
    features, weight, bias = parameters()
    with pytest.raises(ValueError, match="bias is not None: expected None"):
        PAIRS["agcl"][1](features, weight, bias, torch.zeros(9, dtype=torch.int64))


@pytest.mark.parametrize("kind", [losses.LinearLogitAdjustedLoss, losses.LinearBalancedBCELoss, losses.LinearAGCLLoss])
def test_one_process_has_all_classes(kind):
    """With `class_parallel`, which checks that weight and labels are those of a split."""
    target = torch.tensor([0, 1, 2, 3, 0, 0, -100, 1, 2])
    results = []
    for split in (False, True):
        features, weight, bias = parameters()
        torch.manual_seed(1)  # of the noise
        value = kind(COUNTS, class_parallel=split)(
            features, weight, None if kind is losses.LinearAGCLLoss else bias, target
        )
        value.backward()
        results.append((value.detach(), features.grad, weight.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    criterion = kind(COUNTS, class_parallel=True)
    with pytest.raises(ValueError, match="weight is for 3 classes: expected 4, this process's, 0 to 3 of 4"):
        criterion(features, weight[:3], None, target)
    with pytest.raises((ValueError, TypeError), match="target has"):
        criterion(features, weight, None, torch.rand(9, 4))


def test_a_class_weight_cannot_be_split():
    with pytest.raises(ValueError, match="weight is not None: expected None with class_parallel=True"):
        losses.LinearLogitAdjustedLoss(COUNTS, weight=torch.ones(4), class_parallel=True)


FORMS = {
    "cross_entropy": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0]), label_smoothing=0.1),
    "logit_adjusted": losses.LogitAdjustedLoss(COUNTS, tau=1.5, weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "compensation": losses.CompensationLoss(COUNTS, 3),
    "balanced_bce": losses.BalancedBCELoss(COUNTS, label_smoothing=0.1),
    "agcl": losses.AGCLLoss(COUNTS, variant="paper"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_the_settings_and_the_state_of_its_loss(name):
    loss = FORMS[name]
    form = linear_form(loss)
    assert is_linear(form)
    assert not is_linear(loss)
    assert form.state_dict().keys() == loss.state_dict().keys()
    target = torch.tensor([0, 1, 2, 3, 0, 0, -100, 1, 2])
    features, weight, _ = parameters()
    scores = F.linear(features, weight)
    if name == "agcl":
        scores = F.linear(F.normalize(features), F.normalize(weight))
    values = []
    for call in (lambda: loss(scores, target), lambda: form(features, weight, None, target)):
        torch.manual_seed(1)  # of the noise
        values.append(call())
    torch.testing.assert_close(*values)


def test_other_losses_have_no_form():
    class Mine(losses.AGCLLoss):
        """A loss whose `forward` may be another."""

    assert linear_form(losses.LDAMLoss(COUNTS)) is None
    assert linear_form(Mine(COUNTS)) is None
    assert linear_form(nn.MSELoss()) is None
