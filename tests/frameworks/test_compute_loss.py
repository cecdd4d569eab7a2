"""``compute_loss`` by itself; `test_hugging_face.py` uses it in a ``Trainer``."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from ltfast.frameworks import compute_loss
from ltfast.losses import (
    AGCLLoss,
    BalancedBCELoss,
    BalancedSoftmaxLoss,
    CompensationLoss,
    DSCLLoss,
    FocalLoss,
    GCLLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    ProCoLoss,
    SeesawLoss,
    VSLoss,
)

COUNTS = [40, 12, 5, 2]
WEIGHT = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
CRITERIA = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "smoothed cross-entropy": nn.CrossEntropyLoss(label_smoothing=0.2),
    "LogitAdjustedLoss": LogitAdjustedLoss(COUNTS, label_smoothing=0.1),
    "BalancedBCELoss": BalancedBCELoss(COUNTS, label_smoothing=0.1),
    "CompensationLoss": CompensationLoss(COUNTS, 3),
    "LDAMLoss": LDAMLoss(COUNTS),
    "AGCLLoss": AGCLLoss(COUNTS, noise_mul=0.0),
    "BalancedSoftmaxLoss": BalancedSoftmaxLoss(COUNTS),
    "FocalLoss": FocalLoss(COUNTS, label_smoothing=0.1),
    "GCLLoss": GCLLoss(COUNTS, noise_mul=0.0),
    "VSLoss": VSLoss(COUNTS),
    "weighted BalancedBCELoss": BalancedBCELoss(COUNTS, weight=WEIGHT),  # its mean is over the labels
}
WEIGHTED = {
    "cross-entropy": nn.CrossEntropyLoss(weight=WEIGHT),
    "smoothed cross-entropy": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2),
    "LogitAdjustedLoss": LogitAdjustedLoss(COUNTS, weight=WEIGHT),
    "CompensationLoss": CompensationLoss(COUNTS, 3, weight=WEIGHT),
    "LDAMLoss": LDAMLoss(COUNTS, weight=WEIGHT),
    "FocalLoss": FocalLoss(COUNTS, weight=WEIGHT),
}


def batch(rows=13, ignored=(2, 11)):
    """Cosines and labels of which some are ignored."""
    labels = torch.randint(len(COUNTS), (rows,))
    labels[list(ignored)] = -100
    return torch.rand(rows, len(COUNTS), dtype=torch.float64) * 2 - 1, labels


def accumulated(loss, logits, labels, sizes, items):
    """The sum of the losses of small batches, and its gradient."""
    logits = logits.clone().requires_grad_()
    parts = zip(logits.split(sizes), labels.split(sizes), strict=True)
    total = sum(loss({"logits": part}, own, num_items_in_batch=items) for part, own in parts)
    return total.detach(), torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("items", [torch.tensor(11), 11])
def test_small_batches_add_up_to_the_whole_batch(name, items):
    criterion = CRITERIA[name]
    logits, labels = batch()
    total, gradient = accumulated(compute_loss(criterion), logits, labels, [5, 2, 6], items)
    logits.requires_grad_()
    whole = criterion(logits, labels)
    torch.testing.assert_close(total, whole.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, logits)[0])


@pytest.mark.parametrize("name", WEIGHTED)
def test_class_weights(name):
    """The weighted sum over the number of labels: small batches add up, and weights of mean 1 keep the scale."""
    criterion = WEIGHTED[name]
    logits, labels = batch()
    total, gradient = accumulated(compute_loss(criterion), logits, labels, [4, 9], torch.tensor(11))
    mean_weight = WEIGHT[labels[labels != -100]].mean()
    logits.requires_grad_()
    whole = criterion(logits, labels) * mean_weight
    torch.testing.assert_close(total, whole.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, logits)[0])


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), LogitAdjustedLoss(COUNTS), BalancedBCELoss(COUNTS)])
def test_soft_labels(criterion):
    logits, soft = torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 4, dtype=torch.float64)
    items = soft.ne(-100).sum()  # as the Trainer counts them
    total, gradient = accumulated(compute_loss(criterion), logits, soft, [4, 2], items)
    logits.requires_grad_()
    whole = criterion(logits, soft)
    torch.testing.assert_close(total, whole.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, logits)[0])


def test_pixels():
    logits, labels = torch.randn(3, 4, 2, 5, dtype=torch.float64), torch.randint(4, (3, 2, 5))
    labels[0, 0, :3] = -100
    loss = compute_loss(LogitAdjustedLoss(COUNTS))
    parts = zip(logits.split(1), labels.split(1), strict=True)
    total = sum(loss(part, own, num_items_in_batch=torch.tensor(27)) for part, own in parts)
    torch.testing.assert_close(total, LogitAdjustedLoss(COUNTS)(logits, labels))


@pytest.mark.parametrize("wrap", [
    lambda logits: logits,
    lambda logits: {"hidden": None, "logits": logits},
    lambda logits: OrderedDict(logits=logits),
    lambda logits: (logits, "hidden"),
    lambda logits: [logits],
])  # fmt: skip
def test_outputs(wrap):
    logits, labels = batch()
    criterion = LogitAdjustedLoss(COUNTS)
    assert torch.equal(compute_loss(criterion)(wrap(logits), labels), criterion(logits, labels))


def test_mode_follows_gradients():
    """The ``Trainer`` evaluates without gradients; the loss then has no noise."""
    logits, labels = batch()
    criterion = AGCLLoss(COUNTS)
    loss = compute_loss(criterion)
    quiet = AGCLLoss(COUNTS).eval()(logits, labels)
    with torch.no_grad():
        assert torch.equal(loss(logits, labels), quiet)
    assert loss(logits, labels) != quiet
    assert criterion.training


@pytest.mark.filterwarnings("ignore:ltfast runs its slow")  # no kernels exist for the meta device
def test_buffers_follow_the_logits():
    criterion = LogitAdjustedLoss(COUNTS)
    logits, labels = torch.randn(6, 4, device="meta"), torch.zeros(6, dtype=torch.int64, device="meta")
    assert compute_loss(criterion)(logits, labels).device.type == "meta"
    assert criterion.shift.device.type == "meta"


@pytest.mark.gpu
def test_a_criterion_on_the_cpu_with_logits_on_the_gpu():
    logits, labels = batch()
    criterion = LogitAdjustedLoss(COUNTS)
    expected = criterion(logits, labels)
    loss = compute_loss(criterion)(logits.cuda(), labels.cuda(), num_items_in_batch=torch.tensor(11).cuda())
    torch.testing.assert_close(loss.cpu(), expected)


def test_a_failed_call_leaves_the_criterion_as_it_was():
    criterion = LogitAdjustedLoss(COUNTS)
    with pytest.raises(ValueError, match="logits has shape"):
        compute_loss(criterion)(torch.randn(6, 3), torch.zeros(6, dtype=torch.int64), num_items_in_batch=6)
    assert criterion.reduction == "mean"


@pytest.mark.parametrize(("criterion", "error", "message"), [
    (nn.functional.cross_entropy, TypeError, "expected a module with a reduction"),
    (DSCLLoss(), TypeError, "Let the model compute other losses"),
    (ProCoLoss(4, 8), TypeError, "criterion is a ProCoLoss: expected a loss without a state"),
    (SeesawLoss(COUNTS), TypeError, "Let the model hold this loss"),
    (LogitAdjustedLoss(COUNTS, reduction="sum"), ValueError, "reduction='sum': expected 'mean'"),
    (nn.CrossEntropyLoss(ignore_index=255), ValueError, "ignore_index=255: expected -100"),
])  # fmt: skip
def test_criteria_that_are_refused(criterion, error, message):
    with pytest.raises(error, match=message):
        compute_loss(criterion)


@pytest.mark.parametrize(("outputs", "labels", "error", "message"), [
    ({"scores": torch.zeros(2, 4)}, torch.tensor([0, 1]), TypeError, r"keys \['scores'\]: expected the key 'logits'"),
    ((), torch.tensor([0, 1]), TypeError, "type tuple"),
    (({"a": 1},), torch.tensor([0, 1]), TypeError, "type dict"),
    (torch.zeros(2, 4), None, ValueError, "labels is None"),
])  # fmt: skip
def test_outputs_that_are_refused(outputs, labels, error, message):
    with pytest.raises(error, match=message):
        compute_loss(LogitAdjustedLoss(COUNTS))(outputs, labels)
