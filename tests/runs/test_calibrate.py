"""The parameters and the thresholds that `ltfast calibrate` chooses."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional as F

from ltfast.engine import Predictor
from ltfast.runs.calibrate import abstain_threshold, class_thresholds, fit_temperature, fit_vector, measures
from ltfast.runs.calibration import Calibrated


def drawn(images, classes, *, temperature=1.0, bias=None, seed=0):
    """Class scores, and labels that follow the softmax of `scores / temperature + bias`."""
    random = torch.Generator().manual_seed(seed)
    scores = 4 * torch.randn(images, classes, generator=random, dtype=torch.float64)
    true = (scores / temperature + (0 if bias is None else bias)).softmax(1)
    return scores, torch.multinomial(true, 1, generator=random)[:, 0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found(temperature):
    scores, labels = drawn(20000, 5, temperature=temperature)
    found = fit_temperature(scores, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    best = F.cross_entropy(scores / found, labels)
    for near in (0.999, 1.001):
        assert F.cross_entropy(scores / (near * found), labels) > best


def test_scores_without_an_error_have_no_temperature():
    scores = 3 * torch.eye(3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="all 3 held-out images are classified correctly, so that no temperature"):
        assert fit_temperature(scores, torch.arange(3)) == 1


def test_vector_scaling_finds_the_bias_of_each_class():
    bias = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    scores, labels = drawn(40000, 3, temperature=2.0, bias=bias)
    scale, found = fit_vector(scores, labels)
    torch.testing.assert_close(scale, torch.full_like(scale, 0.5), atol=0.03, rtol=0)
    torch.testing.assert_close(found - found.mean(), bias, atol=0.06, rtol=0)
    calibrated = (scale * scores + found).softmax(1)
    torch.testing.assert_close(calibrated.mean(0), torch.bincount(labels).double() / len(labels), atol=1e-3, rtol=0)
    assert measures(scale * scores + found, labels)["expected_calibration_error"] < 0.02


def test_a_class_without_images_keeps_a_finite_bias():
    scores, labels = drawn(200, 3)
    scores, labels = scores[labels < 2], labels[labels < 2]
    scale, bias = fit_vector(scores, labels)
    assert scale.isfinite().all()
    assert -6 < bias[2] < min(bias[:2])


def test_measures():
    scores, labels = drawn(500, 4, temperature=3.0)
    found, p = measures(scores, labels), scores.softmax(1).numpy()
    assert found["negative_log_likelihood"] == pytest.approx(log_loss(labels, p, labels=range(4)))
    onehot = np.eye(4)[labels]
    assert found["brier_score"] == pytest.approx(((p - onehot) ** 2).sum(1).mean())
    best, right = p.max(1), p.argmax(1) == labels.numpy()
    bins = np.minimum((best * 15).astype(int), 14)
    error = sum(abs(best[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert found["accuracy"] == right.mean()


def reaches(values, hits, total, target, value, threshold):
    kept = hits[values >= threshold]
    return len(kept) > 0 and (kept.mean() if target == "precision" else kept.sum() / total) >= value


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("target", "value"), [("precision", 0.7), ("precision", 0.95), ("recall", 0.3), ("recall", 0.8)]
)
def test_thresholds_are_the_extreme_ones_that_reach_the_value(target, value, seed):
    scores, labels = drawn(60, 4, temperature=3.0, seed=seed)
    p, labels = scores.softmax(1).numpy().round(2), labels.numpy()  # with equal probabilities
    rows = class_thresholds(p, labels, "abcd", target, value)
    for c, row in enumerate(rows):
        own = p.argmax(1) == c
        values, hits, total = p[own, c], labels[own] == c, (labels == c).sum()
        candidates = [t for t in sorted({0.0, *values}) if reaches(values, hits, total, target, value, t)]
        if row["threshold"] is None:
            assert not candidates
            assert row["reason"].startswith(("no threshold reaches", "none of these images"))
            continue
        assert row["reason"] is None
        threshold = row["threshold"]
        best = candidates[0] if target == "precision" else candidates[-1]
        assert (values >= threshold).tolist() == (values >= best).tolist()
        assert threshold == 0 or abs(values - threshold).min() > 1e-3  # away from any image
        kept = hits[values >= threshold]
        assert (row["images"], row["precision"], row["recall"]) == (len(kept), kept.mean(), kept.sum() / total)
        assert row[target] >= value


def test_classes_without_a_threshold_say_why():
    p = np.array([[0.6, 0.4, 0, 0], [0.7, 0.3, 0, 0], [0.1, 0.0, 0, 0.9]])
    labels = np.array([1, 0, 0])
    reasons = [row["reason"] for row in class_thresholds(p, labels, "abcd", "precision", 0.9)]
    assert reasons == [
        None,
        "none of these images is predicted as this class",
        "none of these images is of this class",
        "none of these images is of this class",
    ]
    (first, *_) = class_thresholds(p, labels, "abcd", "recall", 0.9)
    assert first["reason"] == "no threshold reaches a recall of 0.9 on these images"
    assert class_thresholds(p, labels, "abcd", "recall", 0.5)[0]["threshold"] == pytest.approx(0.65)


def test_the_threshold_to_abstain():
    best, right = np.array([0.9, 0.8, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 1, 0])
    p = np.stack([best, 1 - best], 1)
    labels = 1 - right
    found = abstain_threshold(p, labels, 0.75)
    assert (found["threshold"], found["coverage"]) == (pytest.approx(0.65), 0.8)
    assert abstain_threshold(p, labels, 0.6)["threshold"] == 0
    found = abstain_threshold(p, labels, 1.0)
    assert (found["threshold"], found["coverage"]) == (pytest.approx(0.85), 0.2)
    found = abstain_threshold(p[1:3], labels[1:3], 0.6)
    assert (found["threshold"], found["coverage"]) == (None, None)
    assert found["reason"] == "no threshold reaches an accuracy of 0.6 on these images"


def test_calibrated_scores_contain_the_scale_of_the_loss():
    class Cosines(Predictor):
        views, score_scale = 2, 20.0

        def predict(self, *views):
            return views[1].half()

    scores = torch.randn(3, 4).half()
    wrapped = Calibrated(Cosines(), torch.tensor(0.5), torch.arange(4.0))
    assert (wrapped.views, wrapped.adapts, wrapped.score_scale) == (2, False, 1.0)
    torch.testing.assert_close(wrapped.predict(scores, scores), 10 * scores.float() + torch.arange(4.0))
