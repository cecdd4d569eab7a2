import json
import math
import os
import signal
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import ltfast
from ltfast.cli import main
from ltfast.data import load
from ltfast.engine import RunSettings
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.losses import ProCoLoss
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.methods.proco import ProCoStage
from ltfast.models import CosineClassifier
from methods.conftest import tiny_bundle

RECIPES = sorted((Path(ltfast.__file__).parent / "recipes" / "proco").glob("*.yaml"))
GENTLE = {"augment": "basic", "contrast_augment": "basic"}
SMALL = {"batch_size": 5, "backbone": "digits_convnet", "feature_dim": 16, "hidden_dim": 24, **GENTLE}


def build(data=None, run=None, **values):
    torch.manual_seed(0)
    settings = settings_of("proco", {**SMALL, **values})
    return METHODS["proco"].build(settings, data or tiny_bundle(), BuildContext(run or RunSettings(seed=3))).stages[0]


@pytest.mark.parametrize(("classifier", "scale"), [("linear", 1), ("cosine", 30)])
def test_both_branches_learn_from_their_views(classifier, scale):
    stage = build(classifier=classifier)
    *views, labels = next(stage.batches.epoch(0, 0))
    assert [view.shape for view in views] == [(5, 1, 8, 8)] * 3
    assert not torch.equal(views[1], views[2])
    value, logged = stage([*views, labels])
    torch.testing.assert_close(value, logged["classifier_loss"] + logged["contrast_loss"])
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.trained())
    assert isinstance(stage.network.head, CosineClassifier) == (classifier == "cosine")
    torch.testing.assert_close(
        stage.eval().predict(views[0]), scale * stage.network.head(stage.network.backbone(views[0]))
    )


def test_the_loss_is_the_sum_of_its_parts():
    """Written out with the module's own networks: one forward of all views, and the statistics updated first."""
    stage, twin = build(contrast_weight=0.5), build(contrast_weight=0.5)
    *views, labels = next(stage.batches.epoch(0, 0))
    features = twin.network.backbone(torch.cat(views))
    contrast = ProCoLoss(3, 16, class_counts=[12, 6, 2])
    projected = twin.branch.projection(features)[5:]
    contrast.update(projected.detach(), labels.repeat(2))
    second, third = (contrast(z, labels) for z in projected.split(5))
    prior = torch.tensor([12.0, 6.0, 2.0]).log() - math.log(20)
    first = torch.nn.functional.cross_entropy(twin.network.head(features[:5]) + prior, labels)
    torch.testing.assert_close(stage((*views, labels))[0], first + 0.5 * (second + third) / 2)


def test_each_branch_has_its_own_gradient():
    stage = build(contrast_weight=0.0)
    stage(next(stage.batches.epoch(0, 0)))[0].backward()
    assert all(not p.grad.any() for p in stage.branch.projection.parameters())
    assert all(p.grad.any() for p in stage.network.head.parameters())


def test_statistics_are_state_and_exchanged_at_epochs():
    """The estimator of the last epoch goes on into this one; so an epoch's start changes the state, as a batch does."""
    stage = build()

    def state():
        return {name: value.clone() for name, value in stage.branch.loss.state_dict().items()}

    fresh = state()
    assert fresh
    stage.start_epoch()
    for batch in stage.batches.epoch(0, 0):
        stage(batch)
    trained = state()
    assert any(not torch.equal(fresh[name], trained[name]) for name in fresh)
    stage.start_epoch()
    exchanged = state()
    assert any(not torch.equal(exchanged[name], trained[name]) for name in trained)
    again = build()
    again.load_state_dict(stage.state_dict())
    batch = next(stage.batches.epoch(1, 0))
    assert torch.equal(again.eval()(batch)[0], stage.eval()(batch)[0])


def test_the_time_of_both_losses_is_measured():
    stage = build()
    called = []
    for loss in stage.losses():
        loss.register_forward_hook(lambda module, *_: called.append(module))
    stage(next(stage.batches.epoch(0, 0)))
    assert called == [stage.classifier_loss, stage.branch.loss]
    before = {name: value.clone() for name, value in stage.branch.loss.state_dict().items()}
    stage.branch.loss(torch.nn.functional.normalize(torch.randn(4, 16)), torch.tensor([0, 1, 2, 0]))
    assert any(not torch.equal(before[name], value) for name, value in stage.branch.loss.state_dict().items())


@pytest.mark.slow
def test_learns_the_digits():
    torch.manual_seed(0)
    data = load("digits", imbalance=20)
    settings = settings_of("proco", {"batch_size": 32, "lr": 0.02, **GENTLE})
    plan = METHODS["proco"].build(settings, data, BuildContext())
    stage = plan.stages[0]
    optimizer = stage.optimizer()
    losses = []
    for epoch in range(6):
        stage.start_epoch()
        for batch in stage.batches.epoch(epoch, 0):
            loss, logged = stage(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(logged["contrast_loss"].item())
    stage.eval()
    with torch.no_grad():
        right = torch.cat([stage.predict(images).argmax(1) == labels for images, labels in plan.test])
    assert right.float().mean() > 0.6
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.usefixtures("_command_line")
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    command = ["train", "--method", "proco", "--data", "digits", "--imbalance", "50", "--epochs", "2"]
    command += ["--augment", "basic", "--contrast-augment", "basic"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    steps = []

    def interrupt_once(stage):
        steps.append(stage.epoch)
        if len(steps) == 6:  # of 8
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProCoStage, "after_step", interrupt_once)
        assert main([*command, "--out", str(tmp_path / "stopped")]) == 130
    assert steps[-1] == 1
    assert main([*command, "--out", str(tmp_path / "stopped")]) == 0
    whole, stopped = (load_checkpoint(tmp_path / name)["model"] for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert any("branch.loss" in name for name in whole)  # the statistics
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["loss_ms"] > 0
    # an evaluation builds the method again, from the checkpoint alone
    assert main(["eval", "--checkpoint", str(tmp_path / "whole")]) == 0
    assert json.loads((tmp_path / "whole" / "eval.json").read_text())["per_class"] == metrics["per_class"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build(path, like_recipe):
    """Each on a tiny data set of its images' size, with a small backbone in the place of a large one."""
    recipe = yaml.safe_load(path.read_text())
    names = {field.name for field in fields(METHODS["proco"].settings)}
    values = {name: value for name, value in recipe.items() if name in names}
    if values.get("backbone") == "resnet50":
        values["backbone"] = "resnet18"
    stage = (
        METHODS["proco"]
        .build(settings_of("proco", {**values, "batch_size": 2}), like_recipe(recipe), BuildContext())
        .stages[0]
    )
    loss, _ = stage(next(stage.batches.epoch(0, 0)))
    assert loss.isfinite()
    stage.optimisation.make_scheduler(stage.optimizer(), 10)
    if path.stem.startswith("cifar"):
        assert (recipe["lr"], recipe["epochs"], list(stage.optimisation.milestones)) == (0.3, 200, [160, 180])
        assert stage.branch.projection(torch.zeros(2, 64)).shape == (2, 128)


def test_recipes_are_all_there():
    assert [path.stem for path in RECIPES] == ["cifar10-lt", "cifar100-lt", "digits", "imagenet-lt", "inat18"]


@pytest.mark.parametrize(
    ("backbone", "size", "channels"), [("auto", 8, 1), ("auto", 28, 1), ("vit_tiny_patch16_224", 32, 3)]
)
def test_backbones_and_grey_images(backbone, size, channels):
    stage = build(
        tiny_bundle(size=size, channels=channels), backbone=backbone, augment="cifar", contrast_augment="simclr"
    )
    assert stage(next(stage.batches.epoch(0, 0)))[0].isfinite()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 0.0, "temperature: expected a positive number, got 0.0"),
        ("contrast_weight", -1.0, "contrast_weight: expected at least 0, got -1.0"),
        ("feature_dim", 1, "feature_dim: expected at least 2, got 1"),
        ("hidden_dim", 0, "hidden_dim: expected at least 1, got 0"),
        ("augment", "focal", "policy: expected one of none"),
        ("classifier", "svm", "head must be 'linear' or 'cosine', got 'svm'"),
        ("batch_size", 21, "batch_size: expected at most 20"),
    ],
)
def test_bad_settings_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        build(**{name: value})


def test_checkpoints_with_the_names_of_earlier_versions_load():
    stage, other = build(), build()
    stage(next(stage.batches.epoch(0, 0)))
    state = {}
    for name, value in nn.ModuleList([stage]).state_dict().items():
        name = name.replace("0.branch.projection.", "0.network.projection.")
        state[name.replace("0.branch.loss.", "0.contrast_loss.loss.")] = value
    assert "0.contrast_loss.loss.sums" in state
    nn.ModuleList([other]).load_state_dict(state)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in stage.state_dict().items())
