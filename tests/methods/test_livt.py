import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from timm.data import Mixup
from torch import nn
from torch.nn import functional as F

import ltfast
from ltfast.cli import main
from ltfast.engine import RunSettings
from ltfast.engine.checkpoint import load_checkpoint, save_checkpoint
from ltfast.engine.seeding import seed_everything
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.methods.earlier_run import ENCODER, read_run
from ltfast.models import make_backbone
from ltfast.models.load_backbone import load_backbone
from methods.conftest import check_killed_runs, tiny_bundle

RECIPES = sorted((Path(ltfast.__file__).parent / "recipes" / "livt").glob("*.yaml"))
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
SMALL = {"batch_size": 4, "pretrain_batch_size": 5, "pretrain_epochs": 2, **DECODER}
COUNTS = (12, 6, 2)


def build(data=None, **values):
    torch.manual_seed(0)
    settings = settings_of("livt", {**SMALL, **values})
    return METHODS["livt"].build(settings, data or tiny_bundle(COUNTS), BuildContext(RunSettings(seed=3))).stages


def test_both_stages_are_there_and_draw_anew():
    pretrain, finetune = build()
    assert (pretrain.name, finetune.name) == ("pretrain", "finetune")
    assert (pretrain.evaluated, finetune.evaluated) == (False, True)
    assert finetune.batches.batches.start_draw == 40
    optimisation = pretrain.optimisation
    assert (optimisation.epochs, optimisation.batch_size, optimisation.schedule) == (2, 5, "cosine")
    (alone,) = build(pretrain_epochs=0)
    assert alone.name == "finetune"
    assert alone.batches.batches.start_draw == 0
    assert alone.initial is None
    losses = pretrain.losses(), finetune.losses()
    assert losses == ([], [finetune.loss])


def test_pre_training_does_not_look_at_labels():
    stage, _ = build()
    images, labels = next(stage.batches.epoch(0, 0))
    torch.manual_seed(1)
    value, logged = stage((images, labels))
    torch.manual_seed(1)
    torch.testing.assert_close(stage.autoencoder(images), value)
    assert logged == {}
    torch.manual_seed(1)
    assert torch.equal(stage((images, None))[0], value)
    value.backward()
    assert {id(p) for p in stage.trained()} == {id(p) for p in stage.autoencoder.parameters()}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.trained())


@pytest.mark.parametrize(
    "mixing",
    [{}, {"cutmix": 0.0}, {"mixup": 0.0}, {"mixup": 0.0, "cutmix": 0.0}],
    ids=["both", "mixup", "cutmix", "no"],
)
@pytest.mark.parametrize("loss", ["balanced_bce", "bce", "cross_entropy"])
def test_the_loss_is_of_mixed_images_and_targets(loss, mixing):
    _, stage = build(loss=loss, tau=0.5, label_smoothing=0.2, drop_path=0.0, **mixing)
    nn.init.normal_(stage.network.head.weight)
    images, labels = batch = next(stage.batches.epoch(0, 0))
    before = images.clone()
    np.random.seed(4)
    value, _ = stage(stage.prepare(batch))
    assert torch.equal(images, before)
    if "mixup" in mixing and "cutmix" in mixing:
        target = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
        mixed = images
    else:
        np.random.seed(4)
        alphas = {"mixup": 0.8, "cutmix": 1.0, **mixing}
        mix = Mixup(alphas["mixup"], alphas["cutmix"], label_smoothing=0.2, num_classes=3)
        mixed, target = mix(images.clone(), labels)
        assert not torch.equal(mixed, images)
    scores = stage.network(mixed)
    if loss == "cross_entropy":
        expected = -(target * scores.log_softmax(1)).sum(1).mean()
    else:
        share = torch.tensor(COUNTS) / sum(COUNTS)
        shifted = scores + (0.5 if loss == "balanced_bce" else 0.0) * (share / (1 - share)).log()
        expected = F.binary_cross_entropy_with_logits(shifted, target, reduction="none").sum(1).mean()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.trained())


def test_the_same_step_mixes_alike():
    _, stage = build()
    stage.eval()  # no stochastic depth
    batch = next(stage.batches.epoch(0, 0))
    values = []
    for step in (0, 1, 0):
        seed_everything(3, 1, 2, step, 0, 0)
        images, target = stage.mix(batch[0].clone(), batch[1])
        values.append((images, target))
    assert all(torch.equal(a, b) for a, b in zip(values[0], values[2], strict=True))
    assert not torch.equal(values[0][0], values[1][0])


def test_features_are_the_mean_of_the_patch_tokens():
    _, stage = build()
    network = stage.network.eval()
    assert network.head.weight.abs().max() < 1e-4
    nn.init.normal_(network.head.weight)
    images = next(stage.batches.epoch(0, 0))[0]
    tokens = network.forward_features(images)
    assert tokens.shape == (4, 17, 96)
    torch.testing.assert_close(stage.predict(images), network.head(tokens[:, 1:].mean(1)))


def test_only_fine_tuning_leaves_out_blocks():
    pretrain, finetune = build(drop_path=0.3)

    def chances(network):
        return [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.blocks]

    assert chances(pretrain.autoencoder.encoder) == [0.0] * 4
    assert chances(finetune.network) == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_fine_tuning_starts_from_the_pre_trained_encoder_and_keeps_it():
    pretrain, finetune = build()
    nn.init.normal_(pretrain.autoencoder.encoder.blocks[0].attn.qkv.weight)
    head = finetune.network.head.weight.clone()
    finetune.start()
    encoder, network = pretrain.autoencoder.encoder.state_dict(), finetune.network.state_dict()
    assert set(network) - set(encoder) == {"head.weight", "head.bias"}
    assert all(torch.equal(value, network[name]) for name, value in encoder.items())
    assert torch.equal(network["head.weight"], head)
    optimizer = finetune.optimizer()
    finetune(next(finetune.batches.epoch(0, 0)))[0].backward()
    optimizer.step()
    assert all(torch.equal(value, encoder[name]) for name, value in pretrain.autoencoder.encoder.state_dict().items())
    assert not torch.equal(finetune.network.head.weight, head)
    assert {id(p) for p in finetune.trained()}.isdisjoint({id(p) for p in pretrain.parameters()})


def test_layers_learn_the_slower_the_deeper_they_lie():
    _, stage = build(layer_decay=0.5, lr=0.1, warmup_epochs=0)
    optimizer = stage.optimizer()
    stage.optimisation.make_scheduler(optimizer, 10).step_update(0)
    names = {id(p): name for name, p in stage.network.named_parameters()}
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            rates[names[id(p)]], decays[names[id(p)]] = group["lr"], group["weight_decay"]
    assert rates.keys() == dict(stage.network.named_parameters()).keys()
    for name in ("patch_embed.proj.weight", "pos_embed", "cls_token"):
        assert rates[name] == pytest.approx(0.1 / 2**5)
    for number in range(4):
        assert rates[f"blocks.{number}.mlp.fc1.weight"] == pytest.approx(0.1 / 2 ** (4 - number))
    assert rates["head.weight"] == rates["head.bias"] == pytest.approx(0.1)
    assert decays["blocks.0.mlp.fc1.weight"] == decays["head.weight"] == 0.05
    for name in ("pos_embed", "cls_token", "blocks.1.norm1.weight", "blocks.1.mlp.fc1.bias", "head.bias"):
        assert decays[name] == 0
    rates = {group["lr"] for group in build(layer_decay=1.0)[1].optimizer().param_groups}
    assert len(rates) == 1


def test_pre_training_s_optimiser():
    stage, _ = build(weight_decay=0.07)
    optimizer = stage.optimizer()
    names = {id(p): name for name, p in stage.autoencoder.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays.keys() == dict(stage.autoencoder.named_parameters()).keys()
    for name, p in stage.autoencoder.named_parameters():
        token = name in ("mask_token", "encoder.cls_token", "encoder.pos_embed")
        assert decays[name] == (0 if token or p.dim() < 2 else 0.07), name
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


@pytest.mark.parametrize(("epochs", "given", "warmup"), [(400, "auto", 40), (5, "auto", 0), (5, 2, 2)])
def test_pre_training_warms_up(epochs, given, warmup):
    settings = settings_of("livt", {"pretrain_epochs": epochs, "pretrain_warmup_epochs": given})
    assert settings.of_pretraining().warmup_epochs == warmup


def test_both_stages_learn():
    stages = build(lr=2e-3, pretrain_lr=2e-3, warmup_epochs=0, mixup=0.0, cutmix=0.0, drop_path=0.0, layer_decay=1.0)
    for stage in stages:
        stage.start()
        optimizer, batch, values = stage.optimizer(), next(stage.batches.epoch(0, 0)), []
        for _ in range(25):
            torch.manual_seed(0)
            value, _ = stage(stage.prepare(batch))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(value.item())
        assert values[-1] < 0.7 * values[0], stage.name
    assert torch.equal(stage.eval().predict(batch[0]).argmax(1), batch[1])


DIGITS = ["train", "--config", "livt/digits", "--pretrain-epochs", "2", "--epochs", "2", "--warmup-epochs", "1"]
DIGITS += ["--batch-size", "64", "--pretrain-batch-size", "64"]  # 4 steps an epoch


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("livt") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main([*DIGITS, "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.mark.slow
@pytest.mark.usefixtures("_command_line")
def test_killed_inside_and_between_stages_ends_with_the_same_bits(digits_run, tmp_path):
    """Of 8 and 8 steps: killed inside the first stage, at its end, and inside the second, between mixed batches."""
    check_killed_runs(digits_run, DIGITS, (3, 7, 7), ["pretrain", "finetune", "finetune"], tmp_path)


@pytest.mark.usefixtures("_command_line")
def test_a_run_starts_from_another_s_encoder_and_is_evaluated_without_it(digits_run, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    checkpoint = given / "checkpoint.pt"
    checkpoint.write_bytes((digits_run / "checkpoint.pt").read_bytes())
    out = tmp_path / "out"
    short = ["--pretrain-epochs", "0", "--epochs", "1", "--lr", "1e-9", "--init", str(given)]
    assert main([*DIGITS, *short, "--out", str(out)]) == 0
    model = load_checkpoint(out)["model"]
    expected = read_run(digits_run, encoder=True).backbone
    assert {name.removeprefix("0.network.") for name in model} == {*expected, "head.weight", "head.bias"}
    assert all(torch.allclose(value, model[f"0.network.{name}"], atol=1e-6) for name, value in expected.items())
    checkpoint.unlink()
    assert main(["eval", "--checkpoint", str(out)]) == 0
    metrics, result = (json.loads((out / name).read_text()) for name in ("metrics.json", "eval.json"))
    assert metrics["loss_ms"] > 0
    assert result["per_class"] == metrics["per_class"]
    assert main([*DIGITS, *short, "--out", str(tmp_path / "other")]) == 2  # it is not there any more


def test_encoders_that_cannot_be_had_are_named(digits_run, tmp_path):
    saved = load_checkpoint(digits_run)

    def refused(message, **changes):
        save_checkpoint(tmp_path / "checkpoint.pt", {**saved, **changes})
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path, encoder=True)

    refused("init: expected a run's checkpoint with a backbone, .* of method 'ce'", settings={"method": "ce"})
    refused("init: expected a run's checkpoint with a backbone, .* of method 'none'", settings={"method": "none"})
    left = {name: value for name, value in saved["model"].items() if name.startswith("0.autoencoder.decoder")}
    refused("init: expected a run's checkpoint with a backbone, .* of method 'livt'", model=left)
    (tmp_path / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"init: checkpoint .* is truncated, damaged or no checkpoint \(\w+\)$"):
        read_run(tmp_path, encoder=True)
    with pytest.raises(FileNotFoundError, match="init: expected a run's folder or checkpoint"):
        read_run(tmp_path / "nothing", encoder=True)


def test_the_encoder_is_taken_before_or_after_its_fine_tuning(digits_run, tmp_path):
    saved = load_checkpoint(digits_run)
    model = saved["model"]
    before, after = read_run(digits_run, encoder=True), read_run(digits_run)
    assert torch.equal(before.backbone["cls_token"], model[f"{ENCODER}cls_token"])
    assert torch.equal(after.backbone["pos_embed"], model["1.network.pos_embed"])
    assert (before.head, after.head.keys(), before.unfinished) == ({}, {"weight", "bias"}, "")
    for position, unfinished in (
        ({"stage": 0, "epoch": 1, "step": 0}, ", unfinished: stage 1, epoch 2, step 0"),
        ({"stage": 1, "epoch": 0, "step": 0}, ""),  # the fine-tuning has not begun
    ):
        save_checkpoint(tmp_path / "checkpoint.pt", {**saved, "position": position})
        run = read_run(tmp_path)
        assert torch.equal(run.backbone["cls_token"], model[f"{ENCODER}cls_token"])
        assert (run.head, run.unfinished) == ({}, unfinished)


def test_encoders_fit_other_sizes_and_no_other_networks():
    weights = build()[0].autoencoder.encoder.state_dict()
    larger, _ = make_backbone("vit_digits", in_chans=1, image_size=12)
    load_backbone(larger, weights)
    assert torch.equal(larger.blocks[3].mlp.fc2.weight, weights["blocks.3.mlp.fc2.weight"])
    torch.testing.assert_close(larger.pos_embed[:, 1:].mean(1), weights["pos_embed"][:, 1:].mean(1), atol=0.02, rtol=0)
    for name, options in (("vit_tiny_cifar", {}), ("vit_digits", {"depth": 3}), ("vit_digits", {"depth": 5})):
        other, _ = make_backbone(name, in_chans=1, image_size=8, **options)
        with pytest.raises(ValueError, match=r"(missing|unexpected|of another shape)$"):
            load_backbone(other, weights)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build(path, like_recipe):
    """Each on a tiny data set of its images' size, with a small backbone in the place of a large one."""
    recipe = yaml.safe_load(path.read_text())
    names = {field.name for field in fields(METHODS["livt"].settings)}
    values = {name: value for name, value in recipe.items() if name in names}
    settings_of("livt", values)
    if values.get("backbone") == "vit_base_patch16_224":
        values |= {"backbone": "vit_tiny_patch16_224", **DECODER}
    values |= {"batch_size": 2, "pretrain_batch_size": 2}
    plan = METHODS["livt"].build(settings_of("livt", values), like_recipe(recipe), BuildContext())
    for stage in plan.stages:
        assert stage(stage.prepare(next(stage.batches.epoch(0, 0))))[0].isfinite()
        stage.optimisation.make_scheduler(stage.optimizer(), 10)
    if recipe["data"].startswith("list:"):
        expected = {"pretrain_epochs": 800, "mask_ratio": 0.75, "mixup": 0.8, "cutmix": 1.0, "layer_decay": 0.75}
        assert {name: recipe[name] for name in expected} == expected
        images = recipe["accumulate"] * recipe["batch_size"], recipe["accumulate"] * recipe["pretrain_batch_size"]
        assert recipe["lr"] == pytest.approx(1e-3 * images[0] / 256)
        assert recipe["pretrain_lr"] == pytest.approx(1.5e-4 * images[1] / 256)


def test_recipes_are_all_there():
    assert [path.stem for path in RECIPES] == ["cifar10-lt", "digits", "imagenet-lt", "inat18", "places-lt"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tau", -1.0, "tau: expected at least 0, got -1.0"),
        ("label_smoothing", 1.0, r"label_smoothing: expected a number in \[0, 1\), or auto, got 1.0"),
        ("mixup", -0.1, "mixup: expected at least 0, got -0.1"),
        ("cutmix", -0.1, "cutmix: expected at least 0, got -0.1"),
        ("batch_size", 5, r"batch_size: expected an even number \(MixUp and CutMix pair images\), got 5"),
        ("batch_size", 22, "batch_size: expected at most 20"),
        ("drop_path", 1.0, r"drop_path: expected a number in \[0, 1\), got 1.0"),
        ("layer_decay", 0.0, r"layer_decay: expected a number in \(0, 1\], got 0.0"),
        ("pretrain_epochs", -1, "pretrain_epochs: expected at least 0, got -1"),
        ("pretrain_batch_size", 0, "pretrain_batch_size: expected at least 1, got 0"),
        ("pretrain_batch_size", 21, "batch_size: expected at most 20"),
        ("pretrain_lr", 0.0, "pretrain_lr: expected a positive number, got 0.0"),
        ("pretrain_warmup_epochs", 3, "pretrain_warmup_epochs: expected 0 to 2, the epochs of pre-training, or auto"),
        ("mask_ratio", 1.0, r"mask_ratio: expected a number in \(0, 1\), got 1.0"),
        ("decoder_dim", 10, "decoder_dim: expected a multiple of 4 and of the 2 heads, got 10"),
        ("loss", "agcl", "loss: expected balanced_bce, bce or cross_entropy, got 'agcl'"),
        ("backbone", "resnet10t", "backbone: expected a plain vision transformer of timm's, got 'resnet10t'"),
        ("backbone", "vit_tiny_patch16_224", "backbone 'vit_tiny_patch16_224' cannot be created for 8 px images"),
    ],
)
def test_bad_settings_are_named(name, value, message):
    data = tiny_bundle(COUNTS, size=32) if value == "resnet10t" else None
    with pytest.raises(ValueError, match=message):
        build(data, **{name: value})


def test_one_start_alone():
    with pytest.raises(ValueError, match="init: expected none with --pretrained, got 'runs/livt'"):
        settings_of("livt", {"pretrained": True, "init": "runs/livt"})
