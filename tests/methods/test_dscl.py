import json
import os
import signal
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import ltfast
from ltfast.cli import main
from ltfast.data import load
from ltfast.engine import RunSettings
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.methods.dscl import ContrastStage
from ltfast.models import feature_map
from ltfast.ops import patch_roi_pool
from methods.conftest import tiny_bundle

RECIPES = sorted((Path(ltfast.__file__).parent / "recipes" / "dscl").glob("*.yaml"))
SMALL = {
    "batch_size": 5,
    "backbone": "digits_convnet",
    "feature_dim": 16,
    "queue_size": 12,
    "augment": "basic",
    "patches": 2,
    "patch_size": 8,
    "patch_scale": (0.3, 1.0),
    "classifier_batch_size": 6,
    "classifier_augment": "basic",
}


def build(data=None, run=None, **values):
    torch.manual_seed(0)
    settings = settings_of("dscl", {**SMALL, **values})
    return METHODS["dscl"].build(settings, data or tiny_bundle(), BuildContext(run or RunSettings(seed=3))).stages


def test_the_loss_is_the_sum_of_its_parts():
    """Written out, with a forward pass of the query and another of all patches."""
    stage, twin = (build(pbsd_weight=0.5)[0].train() for _ in range(2))
    batches = stage.batches.epoch(0, 0)
    for _ in range(2):  # the second finds the queue filled
        (query_images, key_images, patches, boxes), labels = batch = next(batches)
        assert query_images.shape == key_images.shape == (5, 1, 8, 8)
        assert patches.shape == (5, 2, 1, 8, 8)
        assert boxes.shape == (5, 2, 4)
        network, losses = twin.contrast, twin.contrast.losses
        maps, features = feature_map(network.encoder, query_images)
        project = network.projection
        query = project(features)
        pooled = project(patch_roi_pool(maps, boxes, spatial_scale=maps.shape[-1] / 8).flatten(0, 1)).unflatten(
            0, (5, 2)
        )
        cropped = project(network.encoder(patches.flatten(0, 1))).unflatten(0, (5, 2))
        with torch.no_grad():
            key = network.key_network(key_images)
        contrast = losses.contrast(query, key, labels, losses.queue)
        distillation = losses.distillation(pooled, cropped, key, losses.queue)
        losses.queue.enqueue(key, labels)
        value, logged = stage(batch)
        torch.testing.assert_close(logged, {"contrast": contrast, "distillation": distillation})
        torch.testing.assert_close(value, contrast + 0.5 * distillation)
    assert len(stage.contrast.losses.queue) == 10


def test_gradients_reach_what_is_trained_and_nothing_else():
    contrast, classifier = build()
    contrast(next(contrast.batches.epoch(0, 0)))[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in contrast.trained())
    assert all(p.grad is None for p in contrast.contrast.key_network.parameters())
    assert all(p.grad is None for p in classifier.network.head.parameters())
    assert {id(p) for p in classifier.trained()} == {id(p) for p in classifier.network.head.parameters()}


def test_the_key_encoder_follows_slowly():
    stage = build(key_momentum=0.75)[0]
    stage.start()
    before = [p.clone() for p in stage.contrast.key_network.parameters()]
    with torch.no_grad():
        for p in stage.trained():
            p += 1
    stage(next(stage.batches.epoch(0, 0)))
    assert all(torch.equal(old, new) for old, new in zip(before, stage.contrast.key_network.parameters(), strict=True))
    stage.after_step()
    for old, new in zip(before, stage.contrast.key_network.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
    assert stage.train().contrast.key_network.training


def test_without_self_distillation_there_are_no_patches():
    stage = build(pbsd_weight=0.0)[0]
    batch = next(stage.batches.epoch(0, 0))
    assert batch[0][2].shape == (5, 0, 1, 8, 8)
    value, logged = stage(batch)
    assert set(logged) == {"contrast"}
    torch.testing.assert_close(value, logged["contrast"])


def test_the_classifier_sees_classes_alike_and_new_draws():
    _, classifier = build(epochs=3)
    assert classifier.batches.batches.start_draw == 60
    labels = torch.cat([labels for epoch in range(20) for _, labels in classifier.batches.epoch(epoch, 0)])
    shares = torch.bincount(labels, minlength=3) / len(labels)
    assert (shares - 1 / 3).abs().max() < 0.1
    images, labels = next(classifier.batches.epoch(0, 0))
    torch.testing.assert_close(
        classifier((images, labels))[0], F.cross_entropy(classifier.network(images), labels), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("epochs", "milestones"), [(40, (20, 30)), (8, (4, 6)), (3, (1, 2)), (2, (1,)), (1, None)])
def test_the_classifier_s_learning_rate_falls_twice(epochs, milestones):
    optimisation = settings_of("dscl", {"classifier_epochs": epochs}).of_classifier(64, 256)
    assert optimisation.lr == 1.25
    assert (optimisation.schedule == "multistep") == (milestones is not None)
    assert milestones is None or optimisation.milestones == milestones


@pytest.mark.slow
def test_learns_the_digits():
    torch.manual_seed(0)
    data = load("digits", imbalance=20)
    values = {**SMALL, "backbone": "auto", "batch_size": 32, "queue_size": 128, "lr": 0.03, "key_momentum": 0.9}
    values |= {
        "classifier_lr": 0.3,
        "classifier_batch_size": 32,
        "epochs": 5,
        "classifier_epochs": 3,
        "feature_dim": 64,
    }
    plan = METHODS["dscl"].build(settings_of("dscl", values), data, BuildContext())
    for stage in plan.stages:
        for p in stage.parameters():
            p.requires_grad_(False)
        for p in stage.trained():
            p.requires_grad_(True)
        stage.start()
        stage.train()
        optimizer = stage.optimizer()
        for epoch in range(stage.optimisation.epochs):
            for batch in stage.batches.epoch(epoch, 0):
                stage(batch)[0].backward()
                optimizer.step()
                optimizer.zero_grad()
                stage.after_step()
    stage.eval()
    with torch.no_grad():
        right = torch.cat([stage.predict(images).argmax(1) == labels for images, labels in plan.test])
    assert right.float().mean() > 0.6


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    command = ["train", "--config", "dscl/digits", "--epochs", "2", "--classifier-epochs", "1", "--queue-size", "100"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    steps, after_step = [], ContrastStage.after_step

    def interrupt_once(stage):
        after_step(stage)
        steps.append(stage.epoch)
        if len(steps) == 6:  # of 8, in the second epoch; the queue has gone round
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ContrastStage, "after_step", interrupt_once)
        assert main([*command, "--out", str(tmp_path / "stopped")]) == 130
    assert steps[-1] == 1
    assert main([*command, "--out", str(tmp_path / "stopped")]) == 0
    whole, stopped = (load_checkpoint(tmp_path / name)["model"] for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name, value in whole.items():
        assert torch.equal(value, stopped[name]) if isinstance(value, torch.Tensor) else value == stopped[name], name
    assert any("queue" in name for name in whole)
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["loss_ms"] > 0
    # an evaluation builds the method again, from the checkpoint alone
    assert main(["eval", "--checkpoint", str(tmp_path / "whole")]) == 0
    assert json.loads((tmp_path / "whole" / "eval.json").read_text())["per_class"] == metrics["per_class"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build(path, like_recipe):
    """Each on a tiny data set of its images' size, with a small backbone in the place of a large one."""
    recipe = yaml.safe_load(path.read_text())
    names = {field.name for field in fields(METHODS["dscl"].settings)}
    values = {name: value for name, value in recipe.items() if name in names}
    if values.get("backbone") == "resnet50":
        values["backbone"] = "resnet18"
    plan = METHODS["dscl"].build(settings_of("dscl", {**values, "batch_size": 2}), like_recipe(recipe), BuildContext())
    for stage in plan.stages:
        assert stage(next(stage.batches.epoch(0, 0)))[0].isfinite()
        stage.optimisation.make_scheduler(stage.optimizer(), 10)
    if path.stem == "imagenet-lt":
        expected = {"queue_size": 65536, "patches": 5, "patch_size": 64, "pbsd_weight": 1.5, "beta": 8.0}
        assert {name: recipe[name] for name in expected} == expected


def test_recipes_are_all_there():
    assert [path.stem for path in RECIPES] == ["cifar10-lt", "digits", "imagenet-lt"]


@pytest.mark.parametrize(
    ("backbone", "patch_size"), [("resnet32_cifar", 16), ("vit_tiny_patch16_224", 32), ("convnext_atto", 32)]
)
def test_backbones(backbone, patch_size):
    stage = build(tiny_bundle(size=32, channels=3), backbone=backbone, augment="dscl", patch_size=patch_size)[0]
    assert stage(next(stage.batches.epoch(0, 0)))[0].isfinite()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 0.0, "temperature: expected a positive number, got 0.0"),
        ("beta", -1.0, "beta: expected at least 0, got -1.0"),
        ("queue_size", 0, "queue_size: expected at least 1, or auto, got 0"),
        ("key_momentum", 1.0, r"key_momentum: expected a number in \[0, 1\), got 1.0"),
        ("feature_dim", 0, "feature_dim: expected at least 1, got 0"),
        ("pbsd_weight", -0.5, "pbsd_weight: expected at least 0, got -0.5"),
        ("patches", 0, r"patches: expected at least 1 \(--pbsd-weight 0 leaves them out\), got 0"),
        ("patch_size", 0, "patch_size: expected at least 1 pixel, or auto, got 0"),
        ("patch_scale", (0.5, 0.1), r"patch_scale: expected two rising shares in \(0, 1\]"),
        ("classifier_epochs", 0, "classifier_epochs: expected at least 1, got 0"),
        ("classifier_lr", 0.0, "classifier_lr: expected a positive number, or auto, got 0.0"),
        ("classifier_batch_size", 0, "classifier_batch_size: expected at least 1, got 0"),
        ("augment", "moco", "policy: expected one of basic, cifar, dscl, got 'moco'"),
        ("batch_size", 21, "batch_size: expected at most 20"),
    ],
)
def test_bad_settings_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        build(**{name: value})


def test_a_backbone_that_cannot_take_the_patches_is_named():
    with pytest.raises(ValueError, match="patch_size: expected a size that vit_tiny_patch16_224 takes"):
        build(tiny_bundle(size=32, channels=3), backbone="vit_tiny_patch16_224", patch_size=16)
    with pytest.raises(ValueError, match="backbone: expected one whose feature map is as wide as its features"):
        build(tiny_bundle(size=32, channels=3), backbone="mobilenetv3_small_050", patch_size=32)


def test_checkpoints_with_the_names_of_earlier_versions_load():
    stages, others = build(), build()
    stages[0](next(stages[0].batches.epoch(0, 0)))
    stages[0].after_step()
    state = {}
    for name, value in nn.ModuleList(stages).state_dict().items():
        name = name.replace("0.contrast.key_network.encoder.", "0.key_network.module.backbone.")
        name = name.replace("0.contrast.key_network.projection.", "0.key_network.module.projection.")
        name = name.replace("0.contrast.encoder.", "0.network.backbone.")
        name = name.replace("0.contrast.losses.", "0.queue_losses.")
        name = name.replace("0.contrast.projection.", "0.network.projection.")
        state[name] = value
        if "1.network.head." in name:
            state[name.replace("1.", "0.", 1)] = value
            state[name.replace("1.network.", "0.key_network.module.", 1)] = value
        if name.startswith("0.network.projection."):
            state[name.replace("0.", "1.", 1)] = value
    nn.ModuleList(others).load_state_dict(state)
    for stage, other in zip(stages, others, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in stage.state_dict().items())
