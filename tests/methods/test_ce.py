import numpy as np
import pytest
import torch

from ltfast.data import ArrayDataset, DataBundle
from ltfast.engine import RunSettings
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.models import CosineClassifier


def bundle(counts=(12, 6, 2)):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    data = ArrayDataset(images, labels, ["a", "b", "c"])
    return DataBundle(data, data, (0.5,), (0.25,), image_size=8, channels=1)


def build(run=None, **values):
    settings = settings_of("ce", {"batch_size": 5, "backbone": "digits_convnet", **values})
    return METHODS["ce"].build(settings, bundle(), BuildContext(run or RunSettings(seed=3)))


@pytest.mark.parametrize("loss", ["cross_entropy", "logit_adjusted", "agcl", "balanced_bce", "ldam"])
def test_losses_and_their_classifiers(loss):
    stage = build(loss=loss).stages[0]
    value, _ = stage(next(stage.batches.epoch(0, 0)))
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None for p in stage.trained())
    assert isinstance(stage.network.head, CosineClassifier) == (loss in ("agcl", "ldam"))
    assert stage.losses() == [stage.loss]
    assert stage.predict(torch.zeros(4, 1, 8, 8)).shape == (4, 3)


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
    with pytest.raises(ValueError, match="loss: expected cross_entropy"):
        build(loss="focal")
    with pytest.raises(ValueError, match="optimizer"):
        build(optimizer="nosuch").stages[0].optimizer()
