import json
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

import ltfast
from ltfast.cli import main
from ltfast.data import load
from ltfast.engine import RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.loop import train
from ltfast.engine.stage import freeze_untrained
from ltfast.methods import METHODS, BuildContext, frozen_images, settings_of
from ltfast.methods.earlier_run import read_run
from ltfast.methods.lift import class_means, linear_probe
from ltfast.models.adapted_transformer import Adapter
from methods.conftest import check_killed_runs, tiny_bundle

RECIPES = sorted((Path(ltfast.__file__).parent / "recipes" / "lift").glob("*.yaml"))
SMALL = {"batch_size": 4, "backbone": "vit_digits", "epochs": 2, "adapter_width": 3}
ADAPTERS = get_args(Adapter)


def build(data=None, run=None, **values):
    """A plan; new weights count as trained."""
    torch.manual_seed(0)
    settings = settings_of("lift", {**SMALL, **values})
    plan = METHODS["lift"].build(settings, data or tiny_bundle(), BuildContext(run or RunSettings(seed=3)))
    if settings.init is None:
        plan.stages[0].initial = None
    return plan


def test_the_setting_has_the_adapters_of_the_transformer():
    assert get_args(get_type_hints(METHODS["lift"].settings)["adapter"]) == ADAPTERS


def run(plan, out):
    """Train a plan; returns its network."""
    metrics = train(
        plan,
        run=RunSettings(),
        settings={},
        facts={"class_names": ["a", "b", "c"]},
        class_counts=(12, 6, 2),
        groups={"many": [0], "medium": [1], "few": [2]},
        out=out,
        accelerator=make_accelerator("fp32"),
    )
    return plan.stages[0].network, metrics


def test_the_scores_are_scaled_cosines_and_the_loss_is_adjusted():
    for scale, expected in ((25.0, 25.0), (7.0, 7.0), ("learned", 25.0)):
        stage = build(scale=scale).stages[0].train()
        images, labels = batch = next(stage.batches.epoch(0, 0))
        network = stage.network
        features = network.transformer(images)
        cosines = F.cosine_similarity(features[:, None], network.head.weight[None], dim=-1)
        torch.testing.assert_close(stage.predict(images), expected * cosines)
        prior = torch.tensor([12, 6, 2]).log()
        loss, logged = stage(batch)
        torch.testing.assert_close(loss, F.cross_entropy(expected * cosines + prior, labels))
        assert logged == {}
        loss.backward()
        assert (network.log_scale is not None) == (scale == "learned")
        assert network.log_scale is None or network.log_scale.grad != 0


@pytest.mark.usefixtures("_command_line")
@pytest.mark.parametrize(
    "adapter", [pytest.param(name, marks=() if name in ("bias", "lora") else pytest.mark.slow) for name in ADAPTERS]
)
def test_nothing_but_what_is_named_moves(adapter, tmp_path):
    # with few units, the ReLU of an adapter may be 0 for all images
    plan = build(adapter=adapter, adapter_width=16, adapter_blocks=2, epochs=1, lr=0.1)
    network = plan.stages[0].network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run(plan, tmp_path)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    place = "transformer.backbone.blocks."
    blocks = {name for name in before if name.startswith((f"{place}2", f"{place}3"))}
    own = {
        "bias": {name for name in blocks if name.endswith("bias")},
        "layer_norm": {name for name in blocks if ".norm" in name},
        "full": blocks,
    }
    added = {name for name in before if name.startswith(("transformer.adapters", "transformer.prompts"))}
    assert moved == own.get(adapter, added) | {"head.weight"}
    # the checkpoint has what moved, and no more
    assert {name.removeprefix("0.network.") for name in load_checkpoint(tmp_path)["model"]} == moved
    assert load_file(tmp_path / "weights.safetensors").keys() == moved


def test_adapters_learn_under_a_classifier_that_does_not():
    """They learn random labels of random images by heart."""
    plan = build(adapter_width=16, batch_size=20, augment="none", init="a-livt-run")
    stage = plan.stages[0].train()
    freeze_untrained(stage)
    optimizer = torch.optim.Adam(stage.network.transformer.trained(), lr=0.01)
    batch = next(stage.batches.epoch(0, 0))
    losses = []
    for _ in range(40):
        loss, _ = stage(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def features_of(network, data):
    with torch.no_grad():
        images = torch.tensor(np.asarray(data.images), dtype=torch.float32)[:, None]
        return network.transformer.backbone.eval()((images / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("adapter", ["none", "ssf"])  # ssf changes the features from the start
def test_the_classifier_starts_from_class_means(adapter):
    data = tiny_bundle()
    stage = build(data, adapter=adapter).stages[0]
    before = stage.network.head.weight.detach().clone()
    stage.start()
    features = features_of(stage.network, data.train)
    means = torch.stack([features[data.train.labels == c].mean(0) for c in range(3)])
    torch.testing.assert_close(stage.network.head.weight.detach(), F.normalize(means, dim=-1), atol=1e-6, rtol=1e-4)
    assert stage.network.head.weight.requires_grad
    other = build(data, head_init="random").stages[0]
    other.start()
    assert torch.equal(other.network.head.weight, before)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_probe_is_scikit_learn_s(classes):
    features, labels = torch.randn(60, 5), torch.arange(60) % classes
    found = linear_probe(features, labels, classes)
    probe = LogisticRegression(class_weight="balanced", max_iter=100).fit(features.numpy(), labels.numpy())
    assert ((features @ found.T).argmax(1).numpy() == probe.predict(features.numpy())).mean() > 0.8
    torch.testing.assert_close(found.norm(dim=1), torch.ones(classes))
    direction = torch.from_numpy(probe.coef_)
    torch.testing.assert_close(found[-1].double(), F.normalize(direction, dim=1)[-1].double(), atol=1e-5, rtol=1e-4)
    data = tiny_bundle()
    stage = build(data, head_init="linear_probe").stages[0]
    stage.start()
    expected = linear_probe(features_of(stage.network, data.train), data.train.labels, 3)
    torch.testing.assert_close(stage.network.head.weight.detach(), expected, atol=1e-3, rtol=1e-3)


def test_class_means_of_float64():
    features, labels = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 5
    expected = F.normalize(torch.stack([features[c::5].mean(0) for c in range(5)]), dim=1)
    torch.testing.assert_close(class_means(features, labels, 5), expected)


def test_features_of_an_encoder_are_standardised():
    data = tiny_bundle()
    plan = build(data, init="a-livt-run", adapter="none")
    stage = plan.stages[0]
    stage.initial = None
    assert stage.network.transformer.backbone.global_pool == "avg"
    stage.start()
    features = features_of(stage.network, data.train)
    torch.testing.assert_close(stage.network.norm.running_mean, features.mean(0))
    torch.testing.assert_close(stage.network.norm.running_var, features.var(0))
    standard = (features - features.mean(0)) / (features.var(0) + 1e-5).sqrt()
    means = torch.stack([standard[data.train.labels == c].mean(0) for c in range(3)])
    torch.testing.assert_close(stage.network.head.weight.detach(), F.normalize(means, dim=-1), atol=1e-5, rtol=1e-3)


@pytest.mark.usefixtures("_command_line")
@pytest.mark.parametrize(("adapter", "shape"), [("none", (96,)), ("adaptformer", (17, 96))])
def test_a_cache_changes_nothing_but_rounding(adapter, shape, tmp_path, capsys, monkeypatch):
    """The blocks of the cache are other batches than those of the training, so that products round otherwise."""
    monkeypatch.setenv("LTFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(frozen_images, "BLOCK", 8)
    values = {"adapter": adapter, "adapter_blocks": 2, "augment": "none", "lr": 0.1}
    plans = [build(cache_gib=gib, **values) for gib in (0, 20.0)]
    assert [plan.stages[0].cached for plan in plans] == [False, True]
    (labels, cached_labels) = (next(plan.stages[0].batches.epoch(0, 1))[1] for plan in plans)
    assert torch.equal(labels, cached_labels)
    inputs, _ = next(plans[1].stages[0].batches.epoch(1, 2))
    assert inputs.shape == (4, *shape)
    assert "computing the outputs of the frozen blocks once" in capsys.readouterr().out
    networks, metrics = zip(*(run(plan, tmp_path / str(i)) for i, plan in enumerate(plans)), strict=True)
    assert metrics[0]["per_class"] == metrics[1]["per_class"]
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    # another run uses the files, and they have the same bits
    capsys.readouterr()
    monkeypatch.setattr(frozen_images, "_computed", lambda *_: iter([]))
    again = build(head_init="random", **values)
    assert torch.equal(next(again.stages[0].batches.epoch(1, 2))[0], inputs)
    assert capsys.readouterr().out == ""


def test_a_cache_belongs_to_weights_images_and_transform(tmp_path, monkeypatch):
    monkeypatch.setenv("LTFAST_CACHE", str(tmp_path))

    def folders(data=None, change=None, **values):
        plan = build(data, augment="none", adapter_blocks=1, **values)
        if change is not None:
            change(plan.stages[0].network.transformer.backbone.blocks)
        before = set(tmp_path.glob("frozen/*"))
        plan.stages[0].batches.epoch(0, 0)
        return set(tmp_path.glob("frozen/*")) - before

    def scaled(number):
        def change(blocks):
            blocks[number].mlp.fc1.bias.data += 1

        return change

    data = tiny_bundle()
    assert len(folders(data)) == 1
    assert not folders(data)
    assert not folders(data, loss="cross_entropy")
    assert not folders(data, adapter="lora")
    assert len(folders(data, scaled(0))) == 1
    assert len(folders(data, scaled(3))) == 1  # a frozen weight too
    assert len(folders(data, adapter="bias")) == 1  # it trains the biases of the last block
    assert not folders(data, scaled(3), adapter="bias")
    assert len(folders(data, adapter="none")) == 1
    assert len(folders(data.with_statistics((0.4,), (0.25,)))) == 1
    assert len(folders(tiny_bundle((11, 6, 3)))) == 1


def test_damaged_files_of_a_cache_are_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LTFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(frozen_images, "BLOCK", 8)
    values = {"augment": "none", "adapter": "none"}
    expected, _ = next(build(**values).stages[0].batches.epoch(0, 0))
    files = sorted(tmp_path.glob("frozen/*/*.npy"))
    assert len(files) == 3
    whole = [file.read_bytes() for file in files]
    files[0].write_bytes(whole[0][:-1])
    files[1].write_bytes(b"no")
    files[2].unlink()
    assert torch.equal(next(build(**values).stages[0].batches.epoch(0, 0))[0], expected)
    assert [file.read_bytes() for file in files] == whole


def test_where_outputs_are_not_kept(tmp_path, monkeypatch, capsys):
    def note(data=None, **values):
        plan = build(data, augment="none", adapter_blocks=2, **values)
        assert not plan.stages[0].cached
        plan.stages[0].start()
        return capsys.readouterr().out

    why = "they take 0.000122 GiB, and --cache-gib is 1e-06"
    assert note(cache_gib=1e-6) == f"the outputs of the frozen blocks are computed in each epoch: {why}\n"
    assert note(cache_gib=0) == ""
    assert not build(augment="none").stages[0].cached  # every block is adapted
    assert not build(augment="basic", adapter="none").stages[0].cached
    monkeypatch.setattr("ltfast.files.user_cache", lambda: None)
    assert "there is no folder of the user's cache (LTFAST_CACHE gives one)" in note()
    monkeypatch.undo()
    monkeypatch.setenv("LTFAST_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=7))
    with pytest.raises(ValueError, match=r"cache_gib: expected less than 6\.52e-09, the free space of"):
        build(augment="none", adapter="none").stages[0].batches.epoch(0, 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a LiVT run, and of a LIFT run on its encoder."""
    folder = tmp_path_factory.mktemp("lift")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    livt, lift = str(folder / "livt"), str(folder / "lift")
    assert main(["train", "--config", "livt/digits", "--pretrain-epochs", "2", "--epochs", "1", "--warmup-epochs", "0",
                 "--out", livt]) == 0  # fmt: skip
    command = ["train", "--config", "lift/digits", "--init", os.path.relpath(livt), "--batch-size", "64"]
    command += ["--epochs", "2", "--adapter", "bias"]
    assert main([*command, "--out", lift]) == 0
    torch.set_num_threads(threads)
    return Path(livt), Path(lift), command


@pytest.mark.usefixtures("_command_line")
def test_a_finished_run_is_used_from_its_folder(runs, tmp_path, monkeypatch):
    livt, lift, _ = runs
    saved = load_checkpoint(lift)
    assert not saved["whole"]
    assert "0.network.transformer.backbone.blocks.0.mlp.fc1.bias" in saved["model"]
    assert "0.network.transformer.backbone.blocks.0.mlp.fc1.weight" not in saved["model"]
    metrics = json.loads((lift / "metrics.json").read_text())
    monkeypatch.chdir(tmp_path)  # --init was relative to another folder
    assert main(["eval", "--checkpoint", str(lift), "--out", str(tmp_path / "eval.json")]) == 0
    assert json.loads((tmp_path / "eval.json").read_text())["per_class"] == metrics["per_class"]
    data = load("digits")
    classifier = ltfast.runs.load(lift, "cpu")
    found = classifier.predict(list(data.test.images)).argmax(1)
    assert 100 * float((found == data.test.labels).float().mean()) == pytest.approx(metrics["top1"])
    # another run starts from its backbone with the biases that were trained
    backbone, encoder = read_run(lift).backbone, read_run(livt, encoder=True).backbone
    assert torch.equal(backbone["blocks.1.mlp.fc1.weight"], encoder["blocks.1.mlp.fc1.weight"])
    name = "blocks.1.mlp.fc1.bias"
    assert torch.equal(backbone[name], saved["model"][f"0.network.transformer.backbone.{name}"])
    assert not torch.equal(backbone[name], encoder[name])


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
@pytest.mark.parametrize("adapter", ["adaptformer", "none"])
def test_killed_in_mid_epoch_ends_with_the_same_bits(adapter, runs, tmp_path, monkeypatch):
    """With a cache, which the run that continues may have lost."""
    monkeypatch.setenv("LTFAST_CACHE", str(tmp_path / "cache"))
    command = [*runs[2], "--adapter", adapter, "--adapter-blocks", "2", "--augment", "none"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    monkeypatch.setenv("LTFAST_CACHE", str(tmp_path / "other"))
    check_killed_runs(tmp_path / "whole", command, (3, 4), ["adapt", "adapt"], tmp_path / "cut")


def test_a_backbone_without_training_is_refused():
    settings = settings_of("lift", SMALL)
    with pytest.raises(ValueError, match="backbone: expected trained weights"):
        METHODS["lift"].build(settings, tiny_bundle(), BuildContext()).stages[0].start()


def test_the_authors_settings_are_the_defaults():
    settings = METHODS["lift"].settings()
    expected = {"epochs": 10, "batch_size": 128, "optimizer": "momentum", "lr": 0.01, "momentum": 0.9,
                "weight_decay": 5e-4, "schedule": "cosine", "loss": "logit_adjusted", "scale": 25.0,
                "adapter": "adaptformer", "augment": "resized_crop"}  # fmt: skip
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build(path, like_recipe):
    recipe = yaml.safe_load(path.read_text())
    names = {field.name for field in fields(METHODS["lift"].settings)}
    values = {name: value for name, value in recipe.items() if name in names}
    if recipe.get("pretrained"):
        default = METHODS["lift"].settings()
        differ = {name for name, value in values.items() if getattr(default, name) != value}
        assert differ - {"epochs"} == {"backbone", "pretrained", "image_size"}
        assert values["epochs"] == (20 if path.stem == "inat18" else 10)
        values |= {"backbone": "vit_tiny_patch16_224", "image_size": 32, "pretrained": False}
    plan = METHODS["lift"].build(settings_of("lift", {**values, "batch_size": 2}), like_recipe(recipe), BuildContext())
    (stage,) = plan.stages
    assert stage(next(stage.batches.epoch(0, 0)))[0].isfinite()
    stage.optimisation.make_scheduler(stage.optimizer(), 10)


def test_recipes_are_all_there():
    names = ["cifar10-lt", "cifar100-lt-in21k", "cifar100-lt", "digits", "imagenet-lt", "inat18", "places-lt"]
    assert [path.stem for path in RECIPES] == names


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("adapter_width", 0, "adapter_width: expected at least 1, or auto, got 0"),
        ("adapter_blocks", 0, "adapter_blocks: expected at least 1, or auto, got 0"),
        ("adapter_blocks", 5, "adapter_blocks: expected 1 to 4, the number of blocks, or auto, got 5"),
        ("scale", -1.0, "scale: expected a positive number, or learned, got -1.0"),
        ("cache_gib", -1.0, "cache_gib: expected at least 0, got -1.0"),
        ("loss", "no", "loss: expected one of"),
        ("adapter", "no", "adapter: expected one of none, adaptformer"),
        ("head_init", "no", "head_init: expected one of"),
        ("backbone", "digits_convnet", "backbone: expected a timm VisionTransformer"),
    ],
)
def test_bad_settings_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        build(**{name: value})
