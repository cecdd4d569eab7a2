import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn import metrics as sk
from torch.nn.functional import one_hot
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from ltfast.evaluation.figures import overall, weighted_figures
from ltfast.evaluation.intervals import LEVEL, RESAMPLES, intervals
from ltfast.evaluation.measures import class_records, measures
from ltfast.evaluation.outcome import Outcome
from ltfast.evaluation.predictions import read_predictions, write_predictions
from ltfast.evaluation.scores import Scores

GROUPS = {"many": [0, 1], "medium": [2, 3, 4], "few": [5, 6]}
NAMES = ["a", "b", "c", "d", "e", "f", "g"]
COUNTS = [500, 200, 90, 50, 20, 9, 3]


def outcome(images=300, classes=7, *, absent=(6,), steps=None):
    """Scores of images of which some classes are absent; `steps` rounds the scores, so that many are equal."""
    labels = torch.randint(classes, (images,))
    for c in absent:
        labels[labels == c] = (c + 1) % classes
    scores = torch.randn(images, classes) + 1.5 * one_hot(labels, classes)
    return Outcome((scores * steps).round() / steps if steps else scores, labels, 1.7)


def published(outcome, weights=None):
    """The figures by scikit-learn and torchmetrics."""
    labels, predicted = outcome.labels.numpy(), outcome.predicted.numpy()
    chances = (1.7 * outcome.scores.double()).softmax(1)
    weights = torch.ones(len(labels)) if weights is None else weights
    present = np.unique(labels[weights.numpy() > 0])
    is_class, own = labels[:, None] == present, chances.numpy()[:, present]
    known = np.union1d(present, np.unique(predicted[weights.numpy() > 0]))
    f1 = {kind: sk.f1_score(labels, predicted, labels=known, average=kind, sample_weight=weights, zero_division=0)
          for kind in ("macro", "weighted")}  # fmt: skip
    expanded = weights.long()
    return {
        "top1": 100 * sk.accuracy_score(labels, predicted, sample_weight=weights),
        "top5": 100 * multiclass_accuracy(
            outcome.scores.repeat_interleave(expanded, 0), outcome.labels.repeat_interleave(expanded),
            outcome.scores.shape[1], average="micro", top_k=5,
        ).item(),
        "balanced_accuracy": 100 * sk.recall_score(labels, predicted, labels=present, average="macro",
                                                   sample_weight=weights),
        "macro_f1": 100 * f1["macro"],
        "weighted_f1": 100 * f1["weighted"],
        "macro_auroc": 100 * sk.roc_auc_score(is_class, own, sample_weight=weights),
        "macro_average_precision": 100 * sk.average_precision_score(is_class, own, sample_weight=weights),
        "negative_log_likelihood": sk.log_loss(labels, chances, labels=range(chances.shape[1]), sample_weight=weights),
        "brier_score": np.average((chances - one_hot(outcome.labels, chances.shape[1])).square().sum(1),
                                  weights=weights),
        "expected_calibration_error": 100 * multiclass_calibration_error(
            chances.repeat_interleave(expanded, 0), outcome.labels.repeat_interleave(expanded), chances.shape[1],
            n_bins=15, norm="l1",
        ).item(),
    }  # fmt: skip


@pytest.mark.parametrize("steps", [None, 2], ids=["different", "equal"])
def test_figures_are_those_of_scikit_learn_and_torchmetrics(steps):
    one = outcome(steps=steps)
    expected = published(one)
    if steps:  # torch's topk and torchmetrics' break ties in other ways
        del expected["top5"]
    found = overall(one)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert set(found) == {*expected, "top5"}


def test_a_resample_has_the_figures_of_scikit_learn_with_weights():
    one = outcome(60, steps=2)
    weights = torch.from_numpy(np.random.default_rng().multinomial(60, [1 / 60] * 60, size=5).T).float()
    found = weighted_figures(one, weights.contiguous(), GROUPS)
    for i in range(5):
        expected = published(one, weights[:, i])
        del expected["top5"]
        assert {name: found[name][i].item() for name in expected} == pytest.approx(expected, rel=1e-5)


def test_intervals_are_percentiles_over_resamples():
    one = outcome()
    found = intervals(one, GROUPS)
    assert found == intervals(one, GROUPS)  # it is seeded
    figures = {**overall(one), "many": one.hits[one.labels < 2].double().mean().item() * 100}
    assert set(found) == {*figures, "medium", "few"}
    assert all(found[name][0] < figures[name] < found[name][1] for name in figures if "calibration" not in name)
    # the interval of a rate is that of its normal approximation, up to the resamples
    rate = figures["top1"] / 100
    half = 100 * 1.96 * math.sqrt(rate * (1 - rate) / 300)
    assert found["top1"] == pytest.approx([figures["top1"] - half, figures["top1"] + half], abs=0.25 * half)
    assert (LEVEL, RESAMPLES) == (0.95, 1000)


def test_there_are_no_intervals_of_many_images():
    assert intervals(Outcome(torch.zeros(10_001, 2), torch.zeros(10_001, dtype=torch.int64)), {}) is None
    assert intervals(Outcome(torch.zeros(2001, 2000), torch.zeros(2001, dtype=torch.int64)), {}) is None


def test_records_of_classes():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    one = Outcome(one_hot(predicted, 5).float(), labels)
    a, b, c, d, e = class_records(one, "abcde", [100, 50, 5, 4, 0], {"many": [0, 1], "few": [2, 3, 4]})
    assert a == {
        **{"name": "a", "group": "many", "training_images": 100, "test_images": 4},
        **{"precision": pytest.approx(100 / 3), "recall": 25.0, "f1": pytest.approx(200 / 7)},
        **{"confused_with": "c", "confusions": 2},
    }
    assert (b["precision"], b["recall"], b["confused_with"], b["confusions"]) == (50.0, 50.0, "a", 1)
    assert (c["precision"], c["recall"], c["f1"], c["confused_with"]) == (0.0, 0.0, 0.0, "a")
    for none in (d, e):
        assert (none["precision"], none["recall"], none["f1"], none["test_images"]) == (None, None, None, 0)
        assert (none["confused_with"], none["confusions"]) == (None, 0)
    never = class_records(Outcome(one_hot(predicted * 0, 5).float(), labels), "abcde", [1] * 5, {})[1]
    assert (never["precision"], never["recall"], never["f1"], never["group"]) == (None, 0.0, 0.0, None)


def test_records_are_those_of_scikit_learn():
    one = outcome(40, absent=())
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        one.labels.numpy(), one.predicted.numpy(), labels=range(7), zero_division=np.nan
    )
    records = class_records(one, NAMES, COUNTS, GROUPS)
    for c, record in enumerate(records):
        assert (record["name"], record["training_images"], record["test_images"]) == (NAMES[c], COUNTS[c], support[c])
        for name, values in {"precision": precision, "recall": recall, "f1": f1}.items():
            assert record[name] == (None if np.isnan(values[c]) else pytest.approx(100 * values[c]))
        counts = [int(((one.labels == c) & (one.predicted == other)).sum()) * (other != c) for other in range(7)]
        assert record["confusions"] == max(counts)
        assert record["confused_with"] == (NAMES[int(np.argmax(counts))] if max(counts) else None)


@pytest.mark.parametrize("images", [0, 1])
def test_there_may_be_hardly_any_test_images(images):
    one = Outcome(torch.randn(images, 3), torch.zeros(images, dtype=torch.int64))
    found = measures(one, ["a", "b", "c"], [3, 2, 1], {"many": [0, 1, 2]})
    json.dumps(found, allow_nan=False)
    assert "top5" not in found  # of three classes
    assert found["macro_auroc"] is None  # there is no image of another class
    assert (found["brier_score"] is None) == (images == 0)


def test_scores_that_are_not_finite_have_no_probabilities(tmp_path):
    one = outcome()
    one.scores[0, 0] = torch.inf
    found = measures(one, NAMES, COUNTS, GROUPS)
    json.dumps(found, allow_nan=False)
    assert found["top1"] is not None
    assert found["macro_auroc"] is found["brier_score"] is found["intervals"]["expected_calibration_error"] is None


def test_predictions_are_read_as_written(tmp_path):
    names = ['sea "lion", large', "b\nc", "<d>", "é", "5", " f", "g"]
    files = {0: "a,b.png", 1: "broken\udcff.png", 2: "c\nd.png"}
    one = outcome(20)
    path = tmp_path / "predictions.csv"
    write_predictions(path, one, names, lambda i: files.get(i, str(i)))
    found = read_predictions(path, names)
    assert found.paths == [files.get(i, str(i)) for i in range(20)]
    assert found.labels.tolist() == one.labels.tolist()
    assert found.predicted.tolist() == one.scores.argmax(1).tolist()
    chances = (1.7 * one.scores.double()).softmax(1)
    assert np.array_equal(found.confidence.astype(np.float32), chances.amax(1).float().numpy())
    assert np.array_equal(
        found.label_probability.astype(np.float32), chances.gather(1, one.labels[:, None])[:, 0].float().numpy()
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("path,class", "predictions.csv:1: expected the columns path, label, class, probability"),
        ("path,label,class,probability,label_probability\n1,a,x,1,1", "predictions.csv:2: expected a class of the run"),
        ("path,label,class,probability,label_probability\n1,a,a,p,1", "predictions.csv:2: could not convert"),
        ("path,label,class,probability,label_probability\n1,a,a,1", "predictions.csv:2: not enough values"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(line, message, tmp_path):
    (tmp_path / "predictions.csv").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "predictions.csv", ["a", "b"])


def test_scores_are_collected_in_order():
    one = outcome(10)
    scores = Scores(7)
    for batch in zip(one.scores.bfloat16().split(4), one.labels.split(4), strict=True):
        scores.add(*batch)
    found, labels = scores.gathered(Accelerator(cpu=True))
    assert found.dtype == torch.float32
    assert torch.equal(found, one.scores.bfloat16().float())
    assert torch.equal(labels, one.labels)
