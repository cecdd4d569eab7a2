"""What `--image-size auto` chooses for images in files, and `--mean` and `--std`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from ltfast.cli import main
from ltfast.data import load
from ltfast.engine import loop
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.methods import settings_of
from ltfast.runs import image_size
from ltfast.runs.image_size import with_image_size

TRAIN = ["train", "--data", "folder:pets", "--epochs", "2", "--batch-size", "6", "--out", "run"]


def same_accuracies():
    metrics, result = (json.loads(Path("run", name).read_text()) for name in ("metrics.json", "eval.json"))
    assert metrics["per_class"] == result["per_class"]


def test_the_size_follows_the_files_and_is_kept(pets, capsys, monkeypatch):
    for path in pets.rglob("*.png"):
        Image.open(path).resize((16, 14)).save(path)
    assert main(TRAIN) == 0
    why = ", since half of the images have a short side of at most 14 pixels\n"
    assert f"chosen by auto: --backbone digits_convnet --image-size 16{why}" in capsys.readouterr().out
    saved = load_checkpoint(Path("run"))
    assert (saved["facts"]["image_size"], saved["settings"]["image_size"]) == (16, "auto")

    # later commands do not look at the images again
    monkeypatch.setattr(image_size, "fitting_size", None)
    for path in (pets / "train").rglob("*.png"):
        Image.open(path).resize((100, 100)).save(path)
    shutil.copytree("run", "half")
    capsys.readouterr()
    data = load("folder:pets")
    settings = settings_of("ce", {})
    kept, why = with_image_size(data, settings, Path("half/checkpoint.pt"))
    assert (kept.image_size, why) == (16, ", as the run began")
    assert main(["eval", "--checkpoint", "run"]) == 0
    same_accuracies()
    assert main(["predict", "--checkpoint", "run", "pets/test"]) == 0


def test_a_run_continues_with_its_size(pets, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "any_process", lambda *_: True)  # the user interrupts it
        assert main(TRAIN) == 130
    facts = load_checkpoint(Path("run"))["facts"]
    assert facts["image_size"] == 8
    monkeypatch.setattr(image_size, "fitting_size", None)
    capsys.readouterr()
    assert main(TRAIN) == 0
    assert "--image-size 8, as the run began\n" in capsys.readouterr().out
    # a checkpoint that cannot be read is named
    Path("run/checkpoint.pt").write_bytes(b"damaged")
    assert main(TRAIN) == 2
    assert "checkpoint run/checkpoint.pt is truncated, damaged or no checkpoint" in capsys.readouterr().err


def test_weights_and_fixed_backbones_decide(pets):
    data, new = load("folder:pets"), Path("new/checkpoint.pt")
    for settings, size, words in (
        ({"pretrained": True}, 224, "trained weights are mostly made for 224 pixels"),
        ({"weights": "w.pth"}, 224, "trained weights are mostly made for 224 pixels"),
        ({"backbone": "vit_tiny_patch16_384"}, 224, "vit_tiny_patch16_384 is made for images of 384 pixels"),
        ({"backbone": "vit_tiny_cifar"}, 32, "vit_tiny_cifar is made for images of 32 pixels"),
        ({"backbone": "resnet18"}, 8, "half of the images have a short side of at most 8 pixels"),
        ({"backbone": "resent18"}, 8, "half"),  # an error where it is made
    ):
        kept, why = with_image_size(data, settings_of("ce", settings), new)
        assert kept.image_size == size
        assert why.startswith(f", since {words}")
    assert with_image_size(data, settings_of("ce", {"image_size": 50}), new) == (data, "")
    arrays = load("digits")
    assert with_image_size(arrays, settings_of("ce", {}), new) == (arrays, "")


def test_a_run_from_another_one_has_its_size(pets):
    assert main([*TRAIN, "--image-size", "12"]) == 0
    data, new = load("folder:pets"), Path("new/checkpoint.pt")
    for start in ("run", "run/checkpoint.pt"):
        kept, why = with_image_size(data, settings_of("ce", {"init": start}), new)
        assert (kept.image_size, why) == (12, f", as in the run {start}")
    kept, why = with_image_size(data, settings_of("ce", {"init": "missing"}), new)  # an error where it is read
    assert kept.image_size == 8


@pytest.mark.parametrize("method", ["livt", "ce"])
def test_a_method_chooses_its_backbone_for_the_size(method, pets):
    for path in pets.rglob("*.png"):
        Image.open(path).resize((28, 28)).save(path)
    settings = settings_of(method, {})
    chosen = settings.chosen(with_image_size(load("folder:pets"), settings, Path("new"))[0])
    assert (chosen.image_size, chosen.backbone) == (32, "vit_tiny_cifar" if method == "livt" else "resnet32_cifar")


def test_mean_and_std(pets, capsys):
    words = ["--mean", "0.5,0.4,0.3", "--std", "0.1,0.2,0.3"]
    assert main([*TRAIN, *words]) == 0
    saved = load_checkpoint(Path("run"))
    assert (saved["facts"]["mean"], saved["facts"]["std"]) == ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
    assert saved["settings"]["mean"] == [0.5, 0.4, 0.3]
    assert main(["eval", "--checkpoint", "run"]) == 0
    same_accuracies()
    from ltfast.runs import load as load_run

    red = load_run("run").transform(Image.new("RGB", (8, 8), "red"))
    assert torch.allclose(red[:, 0, 0], torch.tensor([0.5 / 0.1, -0.4 / 0.2, -0.3 / 0.3]))
    assert main(["report", "importance", "run"]) == 0
    capsys.readouterr()
    for words, message in (
        (["--mean", "0.5,0.5,0.5"], "--std: expected a value for each channel, with --mean, got None"),
        (["--mean", "0.5", "--std", "0.5,0.5,0.5"], "--mean: expected 3 numbers, got (0.5,)"),
        (["--mean", "0.5,0.5,0.5", "--std", "0.5,0,0.5"], "--std: expected numbers above 0, got (0.5, 0.0, 0.5)"),
        (["--mean", "0.5,0.5,x", "--std", "0.5,0,0.5"], "--mean: expected float,float,... or none, got '0.5,0.5,x'"),
    ):
        assert main([*TRAIN[:-1], "other", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["train", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--out", "other"]) == 2
    assert "--mean: expected 1 number, for the greyscale images, got (0.5, 0.5, 0.5)" in capsys.readouterr().err
