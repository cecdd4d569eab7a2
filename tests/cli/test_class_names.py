"""Classes are matched by name, whatever their order in the data."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltfast.cli import main
from ltfast.engine.checkpoint import load_checkpoint

NAMES = ("cat", "dog", "emu")
TRAIN = ["train", "--epochs", "1", "--batch-size", "6", "--image-size", "8", "--imbalance", "2"]


@pytest.fixture
def order(pets):
    """The pets as a list and as arrays whose labels have another order, and files with the names in that order."""
    order = ("emu", "cat", "dog")
    arrays = {}
    for part in ("train", "test"):
        paths = sorted((pets / part).rglob("*.png"))
        labels = [order.index(path.parent.name) for path in paths]
        lines = [f"{path.relative_to(pets)} {label}\n" for path, label in zip(paths, labels, strict=True)]
        Path(f"{part}.txt").write_text("".join(lines))
        arrays[f"x_{part}"] = np.stack([np.asarray(Image.open(path)) for path in paths])
        arrays[f"y_{part}"] = np.array(labels)
    np.savez("d.npz", **arrays)
    Path("names.txt").write_text("\n".join(order))
    return order


def evaluated(*words):
    assert main(["eval", "--checkpoint", "run", *words]) == 0
    return json.loads(Path("run/eval.json").read_text())


def refused(capsys, *words):
    capsys.readouterr()
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("source", ["list:train.txt", "npz:d.npz"])
def test_a_run_on_names_evaluates_numbers_that_are_named(pets, order, source, capsys):
    """Images and classes are those of the run, so the accuracy of each class is too."""
    assert main([*TRAIN, "--data", "folder:pets", "--out", "run"]) == 0
    assert "in 3 classes (cat, dog, emu) of 6 to 3" in capsys.readouterr().out
    own = evaluated()
    assert len(set(own["per_class"])) > 1  # so that the order matters
    words = ["--data", source, "--root", "pets"]
    error = refused(capsys, "eval", "--checkpoint", "run", *words)
    expected = f"expected a file with a name for each class of {source}, whose classes are only numbered"
    assert f"--class-names: {expected}" in error
    assert "the match would be 0 for 'cat', 1 for 'dog', 2 for 'emu'" in error
    other = evaluated(*words, "--class-names", "names.txt")
    assert other["class_names"] == list(NAMES)
    assert [other[key] for key in ("top1", "per_class")] == [own[key] for key in ("top1", "per_class")]


def test_a_run_on_numbers_evaluates_names(pets, order, capsys):
    assert main([*TRAIN, "--data", "list:train.txt", "--root", "pets", "--out", "run"]) == 0
    assert "in 3 classes of 6 to 3" in capsys.readouterr().out
    own = evaluated()
    assert own["class_names"] == ["0", "1", "2"]
    assert evaluated("--data", "npz:d.npz")["per_class"] == own["per_class"]  # numbers match numbers
    error = refused(capsys, "eval", "--checkpoint", "run", "--data", "folder:pets")
    assert "--class-names: expected a file with a name for each class of the training set" in error
    other = evaluated("--data", "folder:pets", "--class-names", "names.txt")
    assert other["class_names"] == list(order)
    assert other["per_class"] == own["per_class"]


def test_names_that_a_training_is_told_are_the_runs(pets, order, capsys):
    words = [*TRAIN, "--data", "list:train.txt", "--root", "pets", "--class-names", "names.txt", "--out", "run"]
    assert main(words) == 0
    facts = load_checkpoint(Path("run"))["facts"]
    assert (facts["class_names"], facts["named"]) == (list(order), True)
    assert json.loads(Path("run/metrics.json").read_text())["settings"]["class_names"] == list(order)
    own = evaluated()
    assert own["class_names"] == list(order)
    assert own["per_class"] == evaluated("--data", "folder:pets")["per_class"]
    assert main(["report", "importance", "run", "--per-class"]) == 0
    assert list(json.loads(Path("importance.json").read_text())["run"]["per_class"]) == list(order)
    # the names are part of the settings
    Path("other.txt").write_text("\n".join(NAMES))
    assert "class_names was ['emu', 'cat', 'dog'] and is now ['cat'" in refused(
        capsys, *[word.replace("names.txt", "other.txt") for word in words]
    )
    Path("names.txt").rename("moved.txt")
    assert main([word.replace("names.txt", "moved.txt") for word in words]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_names_where_there_are_names_are_refused(pets, order, capsys):
    words = [*TRAIN, "--data", "folder:pets", "--out", "run"]
    error = refused(capsys, *words, "--class-names", "names.txt")
    assert "--class-names: expected none, since the classes of folder:pets have names, got names.txt" in error
    assert main(words) == 0
    error = refused(capsys, "eval", "--checkpoint", "run", "--class-names", "names.txt")
    assert "--class-names: expected none, since the classes of folder:" in error


def test_classes_that_the_training_did_not_have_are_refused_by_name(pets, capsys):
    assert main([*TRAIN, "--data", "folder:pets", "--out", "run"]) == 0
    own = evaluated()
    for part in ("train", "test"):
        (pets / part / "dog").rename(pets / part / "ant")
    error = refused(capsys, "eval", "--checkpoint", "run")
    assert "--data: expected only classes of the training set, got test images of 'ant' in folder:" in error
    assert "the training set has 'cat', 'dog', 'emu'" in error
    for part in ("train", "test"):
        (pets / part / "ant").rename(pets / part / "cow")
    for path in (pets / "test" / "cow").iterdir():
        path.unlink()
    # a class without test images does not matter; dog has none now
    assert evaluated()["per_class"] == [own["per_class"][0], None, own["per_class"][2]]
