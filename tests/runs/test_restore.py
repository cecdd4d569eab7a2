import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ltfast.data import load
from ltfast.engine import RunSettings
from ltfast.engine.checkpoint import CheckpointError, save_checkpoint
from ltfast.methods import METHODS, BackboneSettings, BuildContext, Method, settings_of
from ltfast.runs.restore import facts_of, restore, restore_with_test_images


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a method trained on greyscale 8 x 8 images in an npz file."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (6, 4, 2))
    images = random.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5])
    source = f"npz:{tmp_path / 'd.npz'}"
    bundle = load(source)
    settings = {"method": "ce", "batch_size": 4, "seed": 7, "data": source}
    plan = METHODS["ce"].build(settings_of("ce", {"batch_size": 4}), bundle, BuildContext())
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(
        path,
        {
            "settings": settings,
            "facts": facts_of(bundle, source, "data"),
            "position": {"stage": 1, "epoch": 0, "step": 0},
            "loss_sum": 0.0,
            "train_seconds": 1.0,
            "model": nn.ModuleList(plan.stages).state_dict(),
            "optimizer": None,
            "scaler": None,
        },
    )
    return path


def test_every_method_has_what_restore_relies_on():
    assert all(issubclass(method.settings, BackboneSettings) for method in METHODS.values())


def test_restored_as_it_was_trained(checkpoint):
    trained = restore_with_test_images(checkpoint, run=RunSettings(), batch_size=2)
    assert [len(labels) for _, labels in trained.plan.test] == [2, 2, 1]
    assert trained.predictor is trained.plan.stages[-1]
    assert trained.unfinished is None
    saved = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(value, saved[f"0.{name}"]) for name, value in trained.predictor.state_dict().items())


def test_restored_without_any_data(checkpoint, tmp_path):
    whole = restore_with_test_images(checkpoint, run=RunSettings())
    (tmp_path / "d.npz").unlink()
    trained = restore(checkpoint, run=RunSettings())
    assert list(trained.plan.test) == []
    assert (trained.image_size, trained.facts["class_names"]) == (8, ["0", "1", "2"])
    images, _ = next(iter(whole.plan.test))
    with torch.no_grad():
        scores = [one.predictor.eval().predict(images) for one in (whole, trained)]
    assert torch.equal(*scores)
    (transform,) = trained.transforms
    assert torch.equal(transform(Image.new("RGB", (8, 8))), whole.transforms[0](Image.new("L", (8, 8))))


def test_test_images_are_enough(checkpoint, tmp_path):
    before = list(restore_with_test_images(checkpoint, run=RunSettings()).plan.test)
    with np.load(tmp_path / "d.npz") as arrays:
        part = {name: arrays[name] for name in ("x_test", "y_test")}
    np.savez(tmp_path / "d.npz", **part)
    after = list(restore_with_test_images(checkpoint, run=RunSettings()).plan.test)
    assert all(torch.equal(*pair) for pair in zip(before[0], after[0], strict=True))


def test_the_stand_in_for_the_training_images_copies_none(checkpoint, monkeypatch):
    seen = []

    def build(settings, bundle, context):
        seen.append((settings, bundle, context.run))
        return ce.build(settings, bundle, context)

    ce = METHODS["ce"]
    monkeypatch.setitem(METHODS, "ce", Method(ce.settings, build))
    restore_with_test_images(checkpoint, run=RunSettings())
    settings, bundle, run = seen[0]
    assert bundle.class_counts == [6, 4, 2]
    assert np.shares_memory(bundle.train.images, bundle.test.images)
    assert (settings.image_size, settings.pretrained, run.seed) == (8, False, 7)


def test_a_damaged_checkpoint_is_not_to_be_deleted(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"is truncated, damaged or no checkpoint \(\w+\)$"):
        restore_with_test_images(checkpoint, run=RunSettings())


def test_a_checkpoint_that_does_not_say_whether_its_classes_have_names(checkpoint, tmp_path):
    """The classes of an array are numbers."""
    saved = torch.load(checkpoint, weights_only=True)
    del saved["facts"]["named"]
    save_checkpoint(checkpoint, {name: value for name, value in saved.items() if name != "format"})
    assert restore_with_test_images(checkpoint, run=RunSettings()).facts["class_names"] == ["0", "1", "2"]
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    named = restore_with_test_images(checkpoint, run=RunSettings(), class_names=names)
    assert named.facts["class_names"] == ["a", "b", "c"]
