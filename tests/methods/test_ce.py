from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
import torch

from ltfast.data import ArrayDataset, DataBundle
from ltfast.engine import RunSettings
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.methods.settings import ce
from ltfast.models import CosineClassifier


def bundle(counts=(12, 6, 2)):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    data = ArrayDataset(images, labels, ["a", "b", "c"])
    return DataBundle(data, data, (0.5,), (0.25,), image_size=8, channels=1)


def build(run=None, **values):
    settings = settings_of("ce", {"batch_size": 5, "backbone": "digits_convnet", **values})
    return METHODS["ce"].build(settings, bundle(), BuildContext(run or RunSettings(seed=3)))


LOSSES = get_args(next(field for field in fields(ce.Settings) if field.name == "loss").type)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_their_classifiers(loss):
    stage = build(loss=loss).stages[0]
    value, _ = stage(next(stage.batches.epoch(0, 0)))
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None for p in stage.trained())
    assert isinstance(stage.network.head, CosineClassifier) == (loss in ("agcl", "ldam", "gcl"))
    assert stage.losses() == [stage.loss]
    assert stage.predict(torch.zeros(4, 1, 8, 8)).shape == (4, 3)


def test_losses_have_their_settings():
    """Those that the losses take, and the authors' own where they take none."""
    weight = torch.tensor([1.0, 2.0, 3.0])
    for loss in LOSSES:
        _, takes = settings_of("ce", {"loss": loss}).loss_takes()
        values = {"class_weights": (1.0, 2.0, 3.0), "label_smoothing": 0.2}
        stage = build(loss=loss, **{name: value for name, value in values.items() if name in takes}).stages[0]
        if "class_weights" in takes:
            assert torch.equal(stage.loss.weight, weight)
        if "label_smoothing" in takes and loss != "agcl":
            assert stage.loss.label_smoothing == 0.2
    assert build(loss="agcl").stages[0].loss.weight_neg == pytest.approx(0.1 / 3)
    assert build(loss="class_balanced_focal").stages[0].loss.loss == "focal"


@pytest.mark.parametrize(
    ("loss", "fused"), [("cross_entropy", "off"), ("cross_entropy", "on"), ("ldam", "off"), ("vs", "off")]
)
def test_deferred_weights_begin_with_their_epoch(loss, fused):
    settings = {"loss": loss, "class_weights": "effective", "epochs": 5}
    deferred = build(RunSettings(seed=3, fused_classifier=fused), defer_reweighting=2, **settings).stages[0]
    weighted, plain = build(**settings).stages[0], build(loss=loss).stages[0]
    for stage in (weighted, plain):
        stage.load_state_dict(deferred.state_dict(), strict=False)
        if loss == "cross_entropy" and stage is weighted:
            stage.loss.weight.copy_(deferred.class_weights)  # PyTorch's loss saves its weights
    batch = next(deferred.batches.epoch(0, 0))
    for epoch, like in ((0, plain), (1, plain), (2, weighted), (4, weighted), (1, plain)):  # a run may start anywhere
        deferred.epoch = epoch
        torch.testing.assert_close(deferred(deferred.prepare(batch))[0], like(batch)[0])
    assert weighted(batch)[0] != plain(batch)[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_weights": "effective", "defer_reweighting": 5}, "defer_reweighting: expected 1 to 4 epochs, got 5"),
        ({"class_weights": "effective", "defer_reweighting": 0}, "defer_reweighting: expected 1 to 4 epochs, got 0"),
        ({"defer_reweighting": 2}, "defer_reweighting: expected none without --class-weights, got 2"),
    ],
)
def test_deferred_weights_that_do_not_fit(values, message):
    with pytest.raises(ValueError, match=message):
        settings_of("ce", {"epochs": 5, **values})


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced_softmax", "lade", "class_balanced", "focal", "gcl"])
def test_the_distribution_of_the_scores(loss):
    counts = [12, 6, 2]
    n = torch.tensor(counts, dtype=torch.float64)
    effective = (1 - 0.9999**n) / (1 - 0.9999)
    expected = {"cross_entropy": n, "balanced_softmax": n / n, "lade": n / n, "class_balanced": n / effective}.get(loss)
    found = settings_of("ce", {"loss": loss}).score_distribution(counts)
    if expected is None:
        assert found is None
    else:
        torch.testing.assert_close(found / found.sum(), expected / expected.sum())


def test_batches_are_a_function_of_seed_and_place():
    batches = [build().stages[0].batches for _ in range(2)]
    assert len(batches[0]) == 4
    whole = list(batches[0].epoch(1, 0))
    rest = list(batches[1].epoch(1, 2))
    assert len(rest) == 2
    for (images, labels), (again, labels_again) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    other = next(build(run=RunSettings(seed=4)).stages[0].batches.epoch(1, 0))
    assert not torch.equal(whole[0][0], other[0])


def test_workers_change_nothing():
    alone = list(build().stages[0].batches.epoch(0, 1))
    helped = list(build(run=RunSettings(seed=3, workers=2)).stages[0].batches.epoch(0, 1))
    assert all(torch.equal(a, b) for x, y in zip(alone, helped, strict=True) for a, b in zip(x, y, strict=True))


def test_class_balanced_sampler_evens_the_classes():
    batches = build(sampler="class_balanced").stages[0].batches
    labels = torch.cat([labels for epoch in range(20) for _, labels in batches.epoch(epoch, 0)])
    shares = torch.bincount(labels, minlength=3) / len(labels)
    assert (shares - 1 / 3).abs().max() < 0.1  # 400 draws: four standard deviations


def test_test_batches_of_all_processes_are_the_test_set():
    settings = settings_of("ce", {"batch_size": 5, "backbone": "digits_convnet"})
    labels = []
    for rank in range(3):
        plan = METHODS["ce"].build(settings, bundle(), BuildContext(RunSettings(), rank, 3))
        labels += torch.cat([labels for _, labels in plan.test]).tolist()
    assert sorted(labels) == bundle().test.labels.tolist()


def test_image_size_is_brought_about():
    images, _ = next(iter(build(image_size=12).stages[0].batches.epoch(0, 0)))
    assert images.shape == (5, 1, 12, 12)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="batch_size: expected at most 20"):
        build(batch_size=21)
    with pytest.raises(ValueError, match=f"method: expected one of {', '.join(METHODS)}, got 'nothing'"):
        settings_of("nothing", {})
    with pytest.raises(ValueError, match="image_size: expected at least 1 pixel, or auto, got 0"):
        build(image_size=0)
    with pytest.raises(ValueError, match=r"loss: expected one of cross_entropy, logit_adjusted, .*, got 'hinge'"):
        build(loss="hinge")
    with pytest.raises(ValueError, match="optimizer"):
        build(optimizer="nosuch").stages[0].optimizer()
