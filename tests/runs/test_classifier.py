import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from ltfast.cli import main
from ltfast.data import load as load_data
from ltfast.engine import RunSettings
from ltfast.engine.checkpoint import save_checkpoint
from ltfast.errors import InputError, SettingError
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.runs import load
from ltfast.runs.crops import with_crops
from ltfast.runs.restore import facts_of, restore_with_test_images


@pytest.fixture
def run(tmp_path):
    """The folder of a run of method do with new weights and three sub-models, on arrays of three classes, one per
    group."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (8, 4, 2))
    images = random.integers(0, 256, (14, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    bundle = load_data(f"npz:{tmp_path / 'd.npz'}")
    values = {"batch_size": 4, "group_minima": (8, 4), "aggregate": "instance"}
    plan = METHODS["do"].build(settings_of("do", values), bundle, BuildContext())
    models = plan.predictor.network
    for stage in (2, 3):
        models.prune([weight.detach().abs() for weight in models.weights.values()], 0.5)
        models.begin(stage, plan.stages[0].fresh())
    content = {
        "settings": {"method": "do", "seed": 0, **values, "group_minima": [8, 4]},
        "facts": facts_of(bundle, f"npz:{tmp_path / 'd.npz'}", "data"),
        "position": {"stage": len(plan.stages), "epoch": 0, "step": 0},
        "loss_sum": 0.0,
        "train_seconds": 1.0,
        "model": nn.ModuleList(plan.stages).state_dict(),
        "optimizer": None,
        "scaler": None,
    }
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    return tmp_path


@pytest.mark.parametrize("aggregate", [None, "instance", "average"])
def test_sub_models_predict_as_in_eval(run, aggregate):
    """The augmented views of an image are those of `ltfast eval` too."""
    tested = restore_with_test_images(run, run=RunSettings(), aggregate=aggregate)
    with torch.no_grad():
        scores = torch.cat([tested.predictor.eval().predict(*batch[:-1]) for batch in tested.plan.test])
    images = [tested.plan.test.dataset.dataset.image(i) for i in range(9)]
    (run / "d.npz").unlink()
    classifier = load(run, "cpu", aggregate=aggregate)
    assert torch.equal(classifier.predict(images), scores.double().softmax(1).float())
    assert classifier.metrics is None
    views = [torch.stack([classifier.transform(image) for image in images])] * (1 if aggregate == "average" else 3)
    assert classifier.module(*views).shape == (9, 3)


def cropped(run, aggregate):
    """The scores of the test images with five crops, in one batch as of `ltfast eval`; and the run without crops."""
    tested = restore_with_test_images(run, run=RunSettings(), aggregate=aggregate)
    ensemble = with_crops(tested, "five_crop", BuildContext())
    with torch.no_grad():
        ensemble.predictor.adapt([batch[:-1] for batch in ensemble.plan.test])
        scores = torch.cat([ensemble.predictor.predict(*batch[:-1]) for batch in ensemble.plan.test])
    return scores, tested


@pytest.mark.parametrize("aggregate", ["instance", "average"])
def test_crops_of_sub_models_share_the_views_of_their_image(run, aggregate):
    scores, tested = cropped(run, aggregate)
    images = [tested.plan.test.dataset.dataset.image(i) for i in range(9)]
    found = load(run, "cpu", aggregate=aggregate).predict(images, tta="five_crop")
    assert torch.equal(found, scores.double().softmax(1).float())
    *_, normalise = tested.transforms[0].transforms
    ((_, *others, _),) = tested.plan.test
    expected = []
    with torch.no_grad():
        for k in range(5):
            crop = torch.stack([normalise(v2.FiveCrop(8)(v2.Resize(9)(image))[k]) for image in images])
            expected.append(tested.predictor.eval().predict(crop, *others))
    torch.testing.assert_close(scores, torch.stack(expected).mean(0))


def test_weights_of_a_whole_test_set_come_from_all_crops(run):
    scores, tested = cropped(run, "group")
    assert scores.shape == (9, 3)
    ensemble = with_crops(tested, "five_crop", BuildContext())
    rows = [(crop, *others) for crops, *others, _ in ensemble.plan.test for crop in crops.unbind(1)]
    with torch.no_grad():
        tested.predictor.adapt(rows)
        expected = torch.stack([tested.predictor.predict(*row) for row in rows]).mean(0)
    torch.testing.assert_close(scores, expected)


def test_weights_of_a_whole_test_set_are_refused(run):
    with pytest.raises(InputError, match="aggregate: expected instance or average: group learns the weights"):
        load(run, aggregate="group")


def test_an_unfinished_run_is_named(run):
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    saved["position"]["stage"] = 1
    save_checkpoint(run / "checkpoint.pt", {name: value for name, value in saved.items() if name != "format"})
    with pytest.warns(UserWarning, match="the run is not finished: it is at stage 2 of 5"):
        assert load(run, "cpu").predict([np.zeros((8, 8), np.uint8)]).shape == (1, 3)


def test_an_option_of_another_method(run):
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    saved["settings"]["method"] = "ce"
    save_checkpoint(run / "checkpoint.pt", {name: value for name, value in saved.items() if name != "format"})
    with pytest.raises(SettingError, match="aggregate: expected none, since method 'ce' has no sub-models"):
        load(run, aggregate="average")


def test_an_export_needs_images_only_to_learn_from_them(run, capsys):
    words = ["export", "--checkpoint", str(run), "--raw", "--out", str(run / "model.pt2"), "--aggregate"]
    assert main([*words, "group"]) == 0
    assert "written to " in capsys.readouterr().out
    (run / "d.npz").unlink()
    assert main([*words, "group"]) == 2
    assert f"checkpoint {run}: facts.source: source: no file {run}/d.npz" in capsys.readouterr().err
    assert main([*words, "average"]) == 0
    assert "1 x (1, 8, 8) -> 3 class scores" in capsys.readouterr().out
