"""Where training starts from."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ltfast.engine.checkpoint import save_checkpoint
from ltfast.errors import InputError
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.models import make_backbone
from methods.conftest import tiny_bundle

SMALL = {
    "ce": {},
    "do": {"group_minima": (10, 5)},
    "dscl": {"queue_size": 8, "feature_dim": 8},
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
    network = stage.network.network if method == "do" else stage.network
    return network.transformer.backbone if method == "lpt" else network.backbone, network.head


def equal(first, second):
    """Whether two modules have the same weights, except for a classifier that only one of them has."""
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first.keys() & second.keys() if name[:5] != "head.")


CONVOLUTIONAL = ("ce", "do", "dscl", "proco")


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
        assert equal(own.stages[0].key_network.module, own.stages[0].network)


@pytest.mark.parametrize("source", ["ce", "livt", "lpt"])
@pytest.mark.parametrize("method", ["ce", "livt", "lpt", "do"])
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
    assert kept == ((source, method) not in same)
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
    with pytest.raises(
        InputError, match=r"init: expected a run with a backbone of its own; .* which --pretrained gives"
    ):
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
    wider, _ = make_backbone("vit_digits", in_chans=1, image_size=8, embed_dim=48)
    plan = build("ce", backbone="vit_digits")
    plan.stages[0].network.backbone = wider
    other = save(tmp_path / "other", "ce", plan)
    with pytest.raises(InputError, match=r"got another one in .*: cls_token \(1, 1, 48\) instead of \(1, 1, 96\)"):
        build("ce", backbone="vit_digits", init=str(other)).stages[0].start()


def test_nothing_is_read_before_the_start():
    for method in METHODS:
        build(method, backbone="vit_digits" if method in ("livt", "lpt") else "digits_convnet", init="nowhere")
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
