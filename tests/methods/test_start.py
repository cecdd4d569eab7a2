"""Where training starts from."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from ltfast.cli import main
from ltfast.engine.checkpoint import load_checkpoint, save_checkpoint
from ltfast.errors import InputError, UserError
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.models import make_backbone
from methods.conftest import tiny_bundle

SMALL = {
    "ce": {},
    "do": {"group_minima": (10, 5)},
    "dscl": {"queue_size": 8, "feature_dim": 8},
    "lift": {"adapter_width": 2},
    "livt": {"pretrain_epochs": 0},
    "lpt": {"pool_size": 5},
    "proco": {"feature_dim": 8, "hidden_dim": 8},
}
FINISHED = {"stage": 99, "epoch": 0, "step": 0}


def build(method, data=None, **values):
    """A plan, whose weights are new in each call."""
    small = {"batch_size": 4, "pretrain_batch_size": 4, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    names = METHODS[method].settings.__dataclass_fields__
    small = {name: value for name, value in small.items() if name in names}
    settings = settings_of(method, {**small, "backbone": "digits_convnet", **SMALL[method], **values})
    return METHODS[method].build(settings, data or tiny_bundle(), BuildContext())


def save(folder, method, plan, position=FINISHED, **settings):
    """A checkpoint of a plan; returns its folder."""
    folder.mkdir()
    state = nn.ModuleList(plan.stages).state_dict()
    adapted = plan.adapted if position == FINISHED else None
    left_out = set() if adapted is None else adapted.left_out(nn.ModuleList(plan.stages))
    save_checkpoint(
        folder / "checkpoint.pt",
        {
            "settings": {"method": method, **settings},
            "facts": {"class_names": ["0", "1", "2"], "channels": 1},
            "position": position,
            "loss_sum": 0.0,
            "train_seconds": 0.0,
            "model": {name: value for name, value in state.items() if name not in left_out},
            "whole": not left_out,
            "optimizer": None,
            "scaler": None,
        },
    )
    return folder


def parts(method, plan):
    """The backbone and the classifier of a plan's first stage."""
    stage = plan.stages[0]
    if method == "livt":
        network = stage.autoencoder.encoder if hasattr(stage, "autoencoder") else stage.network
        return network, plan.stages[-1].network.head
    if method == "dscl":
        return stage.contrast.encoder, plan.stages[-1].network.head
    network = stage.network.network if method == "do" else stage.network
    return network.transformer.backbone if method in ("lift", "lpt") else network.backbone, network.head


def equal(first, second):
    """Whether two modules have the same weights, except for a classifier that only one of them has."""
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first.keys() & second.keys() if name[:5] != "head.")


CONVOLUTIONAL = ("ce", "do", "dscl", "proco")


@pytest.mark.slow
@pytest.mark.parametrize("source", CONVOLUTIONAL)
@pytest.mark.parametrize("method", CONVOLUTIONAL)
def test_every_method_starts_from_every_other_s_network(source, method, tmp_path, capsys):
    theirs = build(source)
    run = save(tmp_path / "run", source, theirs)
    own = build(method, init=str(run))
    assert not equal(parts(method, own)[0], parts(source, theirs)[0])
    own.stages[0].start()
    for mine, other in zip(parts(method, own), parts(source, theirs), strict=True):
        assert torch.equal(*(next(iter(x.state_dict().values())) for x in (mine, other)))
        assert equal(mine, other)
    line = f"starting from {run} (method {source}): its backbone and its classifier\n"
    assert capsys.readouterr().out == line
    if method == "dscl":
        contrast = own.stages[0].contrast
        assert equal(contrast.key_network.encoder, contrast.encoder)


@pytest.mark.parametrize(
    "source", ["livt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ce", "lift", "lpt"))]
)
@pytest.mark.parametrize("method", ["ce", "lift", "livt", "lpt", "do"])
def test_vision_transformers_too(source, method, tmp_path, capsys):
    theirs = build(source, backbone="vit_digits")
    run = save(tmp_path / "run", source, theirs, {**FINISHED, "stage": 1, "epoch": 1})
    own = build(method, backbone="vit_digits", init=str(run))
    head = [value.clone() for value in parts(method, own)[1].state_dict().values()]
    own.stages[0].start()
    assert equal(parts(method, own)[0], parts(source, theirs)[0])
    assert torch.equal(parts(method, own)[0].pos_embed, parts(source, theirs)[0].pos_embed)
    shown = capsys.readouterr().out
    same = {("ce", "ce"), ("ce", "do"), ("livt", "livt")}  # other features: of prompts, or the mean of the patches
    assert ("and its classifier" in shown) == ((source, method) in same)
    kept = all(map(torch.equal, parts(method, own)[1].state_dict().values(), head))
    assert kept == ((source, method) not in same and method != "lift")  # its classifier starts from class means
    if source == "livt" and method == "ce":
        assert "the classifier is new, since the features of method livt are means of patches" in shown


def test_pre_training_starts_from_a_run_too(tmp_path, capsys):
    theirs = build("livt", backbone="vit_digits")
    run = save(tmp_path / "run", "livt", theirs)
    own = build("livt", backbone="vit_digits", pretrain_epochs=2, init=str(run))
    own.stages[0].start()
    assert equal(parts("livt", own)[0], theirs.stages[0].network)
    assert "its backbone and its classifier" in capsys.readouterr().out
    own.stages[1].start()
    assert torch.equal(own.stages[1].network.pos_embed, theirs.stages[0].network.pos_embed)
    assert torch.equal(own.stages[1].network.head.weight, theirs.stages[0].network.head.weight)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("source", "theirs", "method", "own", "message"),
    [
        ("ce", {}, "ce", {"loss": "agcl"}, "one is a linear and the other a cosine classifier"),
        ("ce", {"loss": "agcl"}, "proco", {"classifier": "cosine"}, None),
        ("ce", {"loss": "ldam"}, "ce", {"loss": "agcl"}, None),
        ("proco", {"classifier": "cosine"}, "ce", {}, "one is a linear and the other a cosine classifier"),
    ],
)
def test_cosine_classifiers(source, theirs, method, own, message, tmp_path, capsys):
    run = save(tmp_path / "run", source, build(source, **theirs))
    build(method, init=str(run), **own).stages[0].start()
    shown = capsys.readouterr().out
    assert (f"its backbone; the classifier is new, since {message}\n" if message else "and its classifier\n") in shown


def test_a_classifier_of_other_classes_starts_anew(tmp_path, capsys):
    run = save(tmp_path / "run", "ce", build("ce"))
    for names, message in (
        (["0", "1", "cat"], "the classes differ: class 2 is 'cat', and '2' in that run"),
        (["0", "2", "1"], "the classes differ: class 1 is '2', and '1' in that run"),
    ):
        bundle = tiny_bundle()
        bundle.train.class_names = names
        plan = build("ce", bundle, init=str(run))
        before = plan.stages[0].network.head.weight.clone()
        plan.stages[0].start()
        assert f"the classifier is new, since {message}" in capsys.readouterr().out
        assert torch.equal(plan.stages[0].network.head.weight, before)
    build("ce", tiny_bundle((6, 4)), init=str(run)).stages[0].start()
    assert "since there are 2 classes, and 3 in that run" in capsys.readouterr().out


def test_an_untrained_classifier_is_not_taken(tmp_path, capsys):
    run = save(tmp_path / "run", "dscl", build("dscl"), {"stage": 0, "epoch": 2, "step": 1})
    build("ce", init=str(run)).stages[0].start()
    expected = f"starting from {run} (method dscl, unfinished: stage 1, epoch 3, step 1): its backbone; "
    expected += "the classifier is new, since that run has not trained one yet\n"
    assert capsys.readouterr().out == expected


def test_the_checkpoint_itself_may_be_named(tmp_path):
    theirs = build("ce")
    run = save(tmp_path / "run", "ce", theirs)
    own = build("ce", init=str(run / "checkpoint.pt"))
    own.stages[0].start()
    assert equal(own.stages[0].network, theirs.stages[0].network)


def test_the_backbone_of_a_finished_lpt_run_is_that_of_its_own_start(tmp_path, capsys):
    theirs = build("livt", backbone="vit_digits")
    livt = save(tmp_path / "livt", "livt", theirs)
    prompted = build("lpt", backbone="vit_digits", init=str(livt))
    lpt = save(tmp_path / "lpt", "lpt", prompted, init=str(livt))
    own = build("ce", backbone="vit_digits", init=str(lpt))
    own.stages[0].start()
    assert equal(parts("ce", own)[0], theirs.stages[0].network)
    assert f"starting from {livt} (method livt): " in capsys.readouterr().out
    other = save(tmp_path / "other", "lpt", prompted, pretrained=True)
    with pytest.raises(InputError, match=r"init: expected a run with a backbone of its own; .* which --pretrained"):
        build("ce", backbone="vit_digits", init=str(other)).stages[0].start()


def test_other_image_sizes_and_channels_and_backbones(tmp_path):
    run = save(tmp_path / "run", "ce", build("ce", backbone="vit_digits"), backbone="vit_digits")
    larger = build("ce", backbone="vit_digits", image_size=12, init=str(run))
    larger.stages[0].start()  # the position embedding is resampled
    assert larger.stages[0].network.backbone.pos_embed.shape[1] == 37
    with pytest.raises(InputError, match=r"init: expected a run on images with 3 channels, as here, got one with 1"):
        build("ce", tiny_bundle(channels=3), backbone="vit_digits", init=str(run)).stages[0].start()
    expected = (
        "init: expected a run with the backbone digits_convnet, as here, got vit_digits in .*: features.0.weight, "
    )
    with pytest.raises(InputError, match=expected):
        build("ce", init=str(run)).stages[0].start()
    chosen = save(tmp_path / "chosen", "ce", build("ce", backbone="vit_digits"), backbone="auto", image_size=40)
    with pytest.raises(InputError, match="as here, got resnet32_cifar in"):
        build("ce", init=str(chosen)).stages[0].start()
    wider, _ = make_backbone("vit_digits", in_chans=1, image_size=8, embed_dim=48)
    plan = build("ce", backbone="vit_digits")
    plan.stages[0].network.backbone = wider
    other = save(tmp_path / "other", "ce", plan, backbone="vit_digits")
    with pytest.raises(InputError, match=r"got another form of it in .*: cls_token \(1, 1, 48\) instead of"):
        build("ce", backbone="vit_digits", init=str(other)).stages[0].start()


def test_nothing_is_read_before_the_start():
    for method in METHODS:
        build(method, backbone="vit_digits" if method in ("lift", "livt", "lpt") else "digits_convnet", init="nowhere")
    with pytest.raises(FileNotFoundError, match="init: expected a run's folder or checkpoint, got 'nowhere'"):
        build("ce", init="nowhere").stages[0].start()


def test_other_processes_are_silent(tmp_path, capsys):
    run = save(tmp_path / "run", "ce", build("ce"))
    stage = build("ce", init=str(run)).stages[0]
    stage.initial = replace(stage.initial, context=BuildContext(rank=1, world_size=2))
    stage.start()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("method", METHODS)
def test_one_start_alone(method):
    with pytest.raises(ValueError, match="init: expected none with --pretrained, got 'runs/a'"):
        settings_of(method, {"pretrained": True, "init": "runs/a"})


def timm_network(name="digits_convnet", in_chans=1, **options):
    """A model of timm's with its classifier."""
    return timm.create_model(name, num_classes=7, in_chans=in_chans, **options)


WRAPPED = {
    "weights.safetensors": lambda state: state,
    "plain.pth": lambda state: state,
    "ema.pth": lambda state: {"state_dict": {"nothing": torch.zeros(1)}, "state_dict_ema": state, "epoch": 3},
    "model.pth.tar": lambda state: {"model": state, "args": argparse.Namespace(lr=1)},
    "parallel.bin": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
}


def write(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(WRAPPED[path.name](state), path)
    return path


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_come_from_files_of_timm(name, tmp_path, capsys):
    theirs = timm_network()
    file = write(tmp_path / name, theirs.state_dict())
    own = build("ce", weights=str(file))
    before = own.stages[0].network.head.weight.clone()
    own.stages[0].start()
    assert equal(own.stages[0].network.backbone, theirs)
    assert torch.equal(own.stages[0].network.head.weight, before)
    expected = f"starting from {file}: its 24 tensors except those of its classifier (fc.bias, fc.weight); "
    assert capsys.readouterr().out == expected + "the classifier is new\n"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_from_a_file(method, tmp_path):
    backbone = "vit_digits" if method in ("lift", "livt", "lpt") else "digits_convnet"
    theirs = timm_network(backbone)
    file = write(tmp_path / "weights.safetensors", theirs.state_dict())
    plan = build(method, weights=str(file), backbone=backbone)
    plan.stages[0].start()
    assert equal(parts(method, plan)[0], theirs)
    if method in ("lift", "lpt"):  # as with --pretrained, and the checkpoint is complete
        assert plan.adapted is None
        assert plan.stages[0].network.transformer.backbone.global_pool == "token"


def test_sizes_and_channels_of_a_file_are_converted(tmp_path):
    theirs = timm_network("vit_digits", in_chans=3, img_size=16)
    file = write(tmp_path / "weights.safetensors", theirs.state_dict())
    plan = build("ce", weights=str(file), backbone="vit_digits")
    plan.stages[0].start()
    backbone = plan.stages[0].network.backbone
    assert torch.equal(backbone.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)
    torch.testing.assert_close(backbone.patch_embed.proj.weight, theirs.patch_embed.proj.weight.sum(1, keepdim=True))
    # the authors' weights of ResNets have no counters in BatchNorm
    state = {n: v for n, v in timm_network().state_dict().items() if not n.endswith("num_batches_tracked")}
    write(file, state)
    build("ce", weights=str(file)).stages[0].start()


def test_files_that_do_not_fit_are_named(tmp_path):
    file = tmp_path / "weights.safetensors"

    def refused(message, method="ce", **options):
        with pytest.raises(UserError, match=message):
            build(method, weights=str(file), **options).stages[0].start()

    state = timm_network().state_dict()
    write(file, {**state, "decoder.weight": torch.zeros(1)})
    refused("weights: expected weights of digits_convnet by timm's names, got .*: decoder.weight is unexpected$")
    write(file, {name: value for name, value in state.items() if name != "features.0.weight"})
    refused(r": features\.0\.weight is missing$")
    write(file, {**state, "features.0.weight": torch.zeros(1, 1, 3, 3)})
    refused(r": features\.0\.weight \(1, 1, 3, 3\) instead of \(32, 1, 3, 3\) is of another shape$")
    refused("expected weights of vit_digits by timm's names", backbone="vit_digits")
    write(file, {**state, "features.0.bias": torch.full((1,), torch.nan)})
    refused("weights: expected tensors by name in .*: features.0.bias: expected finite numbers, got nan")
    file.write_bytes(b"no")
    refused("weights: expected a .safetensors file, or the state_dict of a model that torch.save has written")
    file = tmp_path / "weights.pth"
    refused("weights: no file")
    torch.save(timm_network(), file)
    refused(r"weights: expected a .safetensors file, .*\(pickled objects are not read, since they can run code")
    torch.save({"net": state, "epoch": 1}, file)
    refused("weights: expected tensors by name in .*: net: expected a tensor")
    file = save(tmp_path / "run", "ce", build("ce")) / "checkpoint.pt"
    refused("this is a checkpoint of ltfast, which --init takes")


def test_one_file_alone():
    for start in ({"pretrained": True}, {"init": "runs/a"}):
        with pytest.raises(ValueError, match=rf"weights: expected none with --{next(iter(start))}, got 'w.pth'"):
            settings_of("ce", {**start, "weights": "w.pth"})


@pytest.mark.usefixtures("_command_line")
@pytest.mark.parametrize("method", ["ce", pytest.param("lpt", marks=pytest.mark.slow)])
def test_a_run_needs_its_file_only_to_start(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = "vit_digits" if method == "lpt" else "digits_convnet"
    write(Path("weights.safetensors"), timm_network(backbone).state_dict())
    command = ["train", "--method", method, "--data", "digits", "--imbalance", "50", "--epochs", "1", "--backbone"]
    command += [backbone, "--weights", "weights.safetensors", "--lr", "1e-9", "--out", "run"]
    assert main(command) == 0
    settings = load_checkpoint(Path("run"))["settings"]
    assert settings["weights"] == str(tmp_path / "weights.safetensors")
    Path("weights.safetensors").unlink()
    assert main(["eval", "--checkpoint", "run"]) == 0
    metrics, result = (json.loads(Path("run", name).read_text()) for name in ("metrics.json", "eval.json"))
    assert result["per_class"] == metrics["per_class"]
    assert main(command) == 0  # nothing is left to do
    assert main([*command[:-1], "other"]) == 2
