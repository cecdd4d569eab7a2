"""`ltfast train --keep best`: the weights of the best epoch are those of every other command."""

import json
from pathlib import Path

import pytest

from cli.test_parts import refused, same_test_images
from ltfast.cli import main
from ltfast.engine.checkpoint import load_checkpoint, save_checkpoint

TRAIN = ["train", "--data", "folder:pets", "--epochs", "4", "--batch-size", "6", "--image-size", "8", "--out", "run"]


@pytest.mark.filterwarnings("error:.*has changed since:")
def test_the_kept_weights_are_those_of_eval(pets, capsys):
    words = [*TRAIN, "--validation", "0.4", "--keep", "best", "--metric", "top1", "--patience", "1"]
    assert main(words) == 0
    assert "  validation:  top1 " in capsys.readouterr().out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["settings"]["keep"] == "best"
    assert metrics["settings"]["patience"] == 1
    assert 0 < metrics["epochs"]["train"]["kept"] < metrics["epochs"]["train"]["trained"]  # patience, or the last
    assert set(metrics["validation"]) >= {"top1", "balanced_accuracy", "macro_f1", "per_class"}
    same_test_images()
    changed = ["last" if word == "best" else word for word in words]
    assert "keep was 'best' and is now 'last'" in refused(capsys, *changed)


@pytest.mark.parametrize("what", ["best epoch so far", "average"])
def test_an_unfinished_run_is_evaluated_with_the_weights_it_would_keep(what, pets, capsys):
    assert main([*TRAIN, "--validation", "0.4", "--keep", "best", "--ema", "0.9"]) == 0
    saved = load_checkpoint(Path("run"))
    best = {name.removeprefix("0."): value for name, value in saved["model"].items()}
    saved["model"] = {name: value * 0 for name, value in saved["model"].items()}
    saved["position"] = {"stage": 0, "epoch": 3, "step": 0}
    saved["optimizer"] = {"state": {}, "param_groups": []}
    found = {"epoch": 2, "value": 50.0}
    saved["selection"] = {"epochs": {}, "best": found, "weights": None if what == "average" else best}
    saved["average"] = best if what == "average" else {name: value * 0 for name, value in best.items()}
    save_checkpoint(Path("run/checkpoint.pt"), {name: value for name, value in saved.items() if name != "format"})
    same_test_images()
    assert f"stage train is evaluated with the weights of its {what}" in capsys.readouterr().out


def test_bad_values_are_named(pets, capsys):
    for words, message in (
        (["--keep", "best"], "--keep: expected last with no validation images; give --validation 0.1, or a source"),
        (["--patience", "2"], "--patience: expected none with no validation images"),
        (["--metric", "top1"], "--metric: expected balanced_accuracy (the default) with no validation images"),
        (["--keep", "first"], "--keep: expected one of last, best, got 'first'"),
        (["--validation", "0.4", "--patience", "0"], "--patience: expected at least 1 epoch, or none, got 0"),
        (
            ["--validation", "0.4", "--keep", "best", "--metric", "many"],
            "--metric: expected a metric of classes with validation images (none of the many classes has any)",
        ),
    ):
        assert message in refused(capsys, *TRAIN, *words)
