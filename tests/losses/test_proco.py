import copy
import ctypes
import math
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fixtures import fresh_random_numbers  # noqa: F401
from ltfast.benchmark.cases import published_proco
from ltfast.losses import ProCoLoss

COUNTS = [500, 200, 100, 50, 20, 10, 5]
CLASSES = len(COUNTS)


def batch(rows, width, classes=CLASSES, dtype=torch.float32):
    """Features around a direction of their class, whose means have a length between 0 and 1."""
    labels = torch.randint(classes, (rows,))
    centres = F.normalize(torch.randn(classes, width, dtype=dtype))
    return F.normalize(centres[labels] + torch.randn(rows, width, dtype=dtype) / width**0.5), labels


def plain_statistics(features, labels, classes, width):
    """Directions and concentrations from all features that an estimator has seen, class by class."""
    result = []
    for c in range(classes):
        mean = features[labels == c].double().mean(0)
        length = mean.norm()
        result.append((mean / length, min(width * length / (1 - length**2), 1e5) if length < 1 else 1e5))
    return torch.stack([r[0] for r in result]), torch.tensor([float(r[1]) for r in result])


@pytest.mark.parametrize("width", [128, 1024])
def test_logits_and_gradients_are_the_authors(width):
    # The authors' recurrence starts at order 2 nu: too low for kappa near its limit, with one feature per class.
    features, _ = batch(40, width, 1)
    labels = torch.arange(40) % (CLASSES - 1)  # one class has no features
    ours, baseline = ProCoLoss(CLASSES, width), published_proco.Baseline(CLASSES, width)
    baseline.means = [ours.start.clone().double() for _ in range(2)]
    baseline.counts = [counts.double() for counts in baseline.counts]
    ours.update(features, labels)
    baseline.update(features.double(), labels)
    torch.testing.assert_close(ours.kappa.double(), baseline.kappa, rtol=1e-5, atol=0)
    views = features[:9].clone().requires_grad_(), features[:9].double().requires_grad_()
    logits, expected = ours.logits(views[0]), baseline.logits(views[1])
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    incoming = torch.randn_like(logits)
    (gradient,) = torch.autograd.grad(logits, views[0], incoming)
    (expected_gradient,) = torch.autograd.grad(expected, views[1], incoming.double())
    error = (gradient - expected_gradient).norm(dim=1) / expected_gradient.norm(dim=1)
    assert error.max() < 1e-5


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5), width=st.integers(2, 40), classes=st.integers(1, 9)
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_statistics_are_those_of_all_features_seen(sizes, width, classes):
    loss = ProCoLoss(classes, width)
    batches = [batch(size, width, classes) for size in sizes]
    for features, labels in batches:
        loss.update(features, labels)
    features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    seen = labels.bincount(minlength=classes) > 0
    assert torch.equal(loss.counts, labels.bincount(minlength=classes))
    directions, kappa = plain_statistics(features, labels, classes, width)
    torch.testing.assert_close(loss.directions[seen].double(), directions[seen], rtol=0, atol=1e-4)
    several = seen & (kappa < 1e4)  # 1 - R^2 has no precision to spare closer to R = 1
    torch.testing.assert_close(loss.kappa[several].double(), kappa[several].double(), rtol=1e-2, atol=1e-3)
    # a class without features keeps the authors' start
    torch.testing.assert_close(loss.directions[~seen], F.normalize(loss.start)[~seen])
    # 1 - R^2 cancels: about ten float32 roundings
    torch.testing.assert_close(
        loss.kappa[~seen], torch.full_like(loss.kappa, width * 90 / 19)[~seen], rtol=5e-6, atol=0
    )
    assert ((loss.kappa >= 0) & (loss.kappa <= 1e5)).all()


def test_the_estimators_are_exchanged_at_the_start_of_an_epoch():
    loss = ProCoLoss(CLASSES, 8)
    first, second = batch(30, 8), batch(30, 8)
    loss.start_epoch()
    loss.update(*first)
    loss.start_epoch()
    alone = ProCoLoss(CLASSES, 8)
    alone.update(*first)
    torch.testing.assert_close(loss.kappa, alone.kappa)
    torch.testing.assert_close(loss.directions, alone.directions)
    loss.update(*second)  # features seen in both epochs
    alone.update(*second)
    torch.testing.assert_close(loss.kappa, alone.kappa)
    loss.start_epoch()  # features seen in the second epoch only
    alone = ProCoLoss(CLASSES, 8)
    alone.update(*second)
    torch.testing.assert_close(loss.kappa, alone.kappa)


def test_identical_features_reach_the_limit():
    loss = ProCoLoss(2, 16)
    features = F.normalize(torch.ones(4, 16))
    loss.update(features, torch.zeros(4, dtype=torch.int64))
    assert loss.kappa[0] == pytest.approx(1e5)
    features.requires_grad_()
    value = loss(features, torch.tensor([0, 1, 0, 1]))
    assert value.isfinite()
    assert torch.autograd.grad(value, features)[0].isfinite().all()


def test_opposite_features_cancel():
    loss = ProCoLoss(2, 16)
    z = F.normalize(torch.randn(1, 16))
    loss.update(torch.cat([z, -z]), torch.zeros(2, dtype=torch.int64))
    assert loss.kappa[0] == 0
    assert loss(z, torch.zeros(1, dtype=torch.int64)).isfinite()


def test_the_loss_is_the_logits_cross_entropy_with_the_log_frequencies():
    loss = ProCoLoss(CLASSES, 24, class_counts=COUNTS, temperature=0.2)
    features, labels = batch(12, 24)
    loss.update(features, labels)
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    torch.testing.assert_close(
        loss(features, labels), F.cross_entropy(loss.logits(features) + prior.log(), labels), rtol=1e-5, atol=1e-5
    )
    plain = ProCoLoss(CLASSES, 24, temperature=0.2)
    plain.load_state_dict(loss.state_dict())
    torch.testing.assert_close(plain(features, labels), F.cross_entropy(loss.logits(features), labels))


def test_state_survives_saving_and_copying():
    loss = ProCoLoss(CLASSES, 12)
    loss.update(*batch(20, 12))
    loss.start_epoch()
    loss.update(*batch(20, 12))
    restored = ProCoLoss(CLASSES, 12)
    restored.load_state_dict(loss.state_dict())
    more, probe = batch(20, 12), batch(5, 12)
    for module in (restored, copy.deepcopy(loss), loss):
        module.update(*more)
        module.start_epoch()
    assert torch.equal(loss(*probe), restored(*probe))
    assert torch.equal(loss.kappa, restored.kappa)


def test_half_precision_features_and_autocast():
    loss = ProCoLoss(CLASSES, 64)
    features, labels = batch(40, 64)
    loss.update(features, labels)
    exact = loss(features, labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss.update(features.bfloat16(), labels)
        assert loss.sums.dtype == torch.float32
        torch.testing.assert_close(loss(features, labels), exact, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(loss(features.bfloat16(), labels), exact, rtol=2e-2, atol=5e-2)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_an_update_needs_no_tensor_of_rows_by_classes_by_width():
    classes, rows, width = 8142, 2048, 128
    loss = ProCoLoss(classes, width)
    features, labels = batch(rows, width, classes)
    loss.update(features[:2], labels[:2])

    def resident(line):
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{line}:\s+(\d+) kB", status)[1]) / 1024

    ctypes.CDLL(None).malloc_trim(0)  # memory that is already free would hide what is needed
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident("VmRSS")
    loss.update(features, labels)
    assert resident("VmHWM") - before < 32


def test_every_view_has_the_statistics_of_its_call():
    loss = ProCoLoss(CLASSES, 16)
    (first, labels), (second, _) = batch(9, 16), batch(9, 16)

    def gradients(call):
        views = [first.clone().requires_grad_(), second.clone().requires_grad_()]
        loss.load_state_dict(ProCoLoss(CLASSES, 16).state_dict())
        total = 0
        for view in views:
            loss.update(view, labels)
            total = total + call(view)
        return torch.autograd.grad(total, views)  # after the second update

    expected = gradients(lambda view: F.cross_entropy(copy.deepcopy(loss).logits(view), labels))
    for call in (lambda view: loss(view, labels), lambda view: F.cross_entropy(loss.logits(view), labels)):
        torch.testing.assert_close(gradients(call), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_overflow_does_not_stay_in_the_statistics(value):
    loss, clean = ProCoLoss(CLASSES, 16), ProCoLoss(CLASSES, 16)
    features, labels = batch(30, 16)
    broken = features.clone()
    broken[0, 5] = value
    loss.update(broken, labels)
    clean.update(features[1:], labels[1:])
    for name, expected in clean.state_dict().items():
        torch.testing.assert_close(loss.state_dict()[name], expected, rtol=1e-6, atol=1e-6, msg=name)


def test_statistics_stay_float32():
    loss = torch.nn.Sequential(ProCoLoss(CLASSES, 16)).half()[0]
    assert {buffer.dtype for buffer in loss.buffers()} == {torch.float32, torch.int64}
    loss.update(*batch(30, 16, dtype=torch.float64))
    assert loss(*batch(3, 16, dtype=torch.float64)).dtype == torch.float64
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())


def test_torch_compile():
    loss = ProCoLoss(CLASSES, 16, class_counts=COUNTS)
    model = torch.nn.Linear(16, 16)
    features, labels = batch(9, 16)

    def step(x, labels):
        return loss(F.normalize(model(x)), labels)

    torch.testing.assert_close(
        torch.compile(step, fullgraph=True, backend="aot_eager")(features, labels), step(features, labels)
    )


def test_bad_input():
    for changes, message in (
        ({"num_classes": 0}, "num_classes is 0"),
        ({"feature_dim": 1}, "feature_dim is 1: expected at least 2"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"class_counts": [1, 2]}, "class_counts has 2 classes: expected 7"),
        ({"class_counts": [1, 2, 3, 4, 5, 6, 0]}, r"class_counts\[6\] is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ProCoLoss(**({"num_classes": 7, "feature_dim": 8} | changes))
    loss = ProCoLoss(7, 8)
    features, labels = batch(5, 8)
    before = copy.deepcopy(loss.state_dict())
    for call in (loss, loss.update):
        with pytest.raises(ValueError, match=r"features has shape \(5, 7\): expected \(batch, 8\)"):
            call(features[:, :7], labels)
        with pytest.raises(ValueError, match=r"is 7: expected a label in \[0, 7\)"):
            call(features, labels + 7 - labels[0])
        with pytest.raises(ValueError, match="has shape"):
            call(features, labels[:4])
    with pytest.raises(ValueError, match=r"features has shape \(5, 7\)"):
        loss.logits(features[:, :7])
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
