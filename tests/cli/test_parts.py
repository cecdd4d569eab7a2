"""The training, validation and test images of a run: what is printed, and what `eval` and `report` read again."""

import csv
import json
from pathlib import Path

import pytest

from ltfast.cli import main
from ltfast.engine.checkpoint import load_checkpoint, save_checkpoint

TRAIN = ["train", "--epochs", "1", "--batch-size", "6", "--image-size", "8", "--out", "run"]


def refused(capsys, *words):
    capsys.readouterr()
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def same_test_images(*words):
    """`ltfast eval` finds the test images of the run: the same accuracies, and no warning."""
    assert main(["eval", "--checkpoint", "run", *words]) == 0
    names = ("top1", "per_class")
    found, own = (json.loads(Path("run", file).read_text()) for file in ("eval.json", "metrics.json"))
    assert [found[name] for name in names] == [own[name] for name in names]


@pytest.fixture
def flat(pets):
    """The training images alone, as a folder for each class."""
    return str((pets / "train").rename(pets.parent / "flat"))


@pytest.mark.filterwarnings("error:.*has changed since:")
def test_a_flat_folder(flat, capsys):
    words = [*TRAIN, "--data", "folder:flat", "--test-fraction", "0.3", "--validation", "0.25", "--imbalance", "2"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "folder:flat: 7 training images in 3 classes (cat, dog, emu) of 3 to 2, 2 validation images (0.25 of " in out
    assert "(0.25 of the training images), 5 test images (0.3 of the training images); " in out
    facts = load_checkpoint(Path("run"))["facts"]
    assert facts["parts"] == {"validation": 0.25, "test_fraction": 0.3}
    assert "validation file names" in facts["digests"]
    same_test_images()
    assert main(["report", "importance", "run"]) == 0  # with the same training images
    assert main([*words, "--seed", "1", "--out", "other"]) == 0  # the parts do not depend on it
    other = load_checkpoint(Path("other"))["facts"]
    assert other["digests"] == facts["digests"]
    capsys.readouterr()
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    changed = [word.replace("0.25", "0.2") for word in words]
    assert "validation was 0.25 and is now 0.2" in refused(capsys, *changed)
    error = refused(capsys, *TRAIN, "--data", "folder:flat")
    assert "no folder flat/train; expected train/ and test/ or val/ in flat; with --test-fraction, train/" in error
    error = refused(capsys, *TRAIN, "--data", "folder:flat", "--test-fraction", "1.5")
    assert "--test-fraction: expected a number above 0 and below 1, got 1.5" in error


@pytest.mark.filterwarnings("error:.*has changed since:")
def test_val_and_test_of_a_folder(pets, capsys):
    (pets / "test").rename(pets / "val")
    assert main([*TRAIN, "--data", "folder:pets"]) == 0
    assert "of 6 to 6, 6 test images (val/); " in capsys.readouterr().out
    same_test_images()
    (pets / "train" / "cat" / "0.png").rename(pets / "moved.png")
    (pets / "test" / "cat").mkdir(parents=True)
    (pets / "moved.png").rename(pets / "test" / "cat" / "0.png")
    assert main([*TRAIN, "--data", "folder:pets", "--out", "other"]) == 0
    assert "of 6 to 5, 6 validation images (val/), 1 test images (test/); " in capsys.readouterr().out
    error = refused(capsys, *TRAIN, "--data", "folder:pets", "--validation", "0.1")
    assert "--validation: expected none, since folder:pets has validation images, got 0.1" in error


@pytest.mark.filterwarnings("error:.*has changed since:")
@pytest.mark.parametrize("root", [False, True])
def test_a_table(root, pets, capsys, monkeypatch):
    folder = Path("." if root else "pets")
    paths = sorted(pets.rglob("*.png"))
    with open(folder / "t.csv", "w", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(("file name", "species", "camera"))
        table.writerows((path.relative_to(pets), path.parent.name, f"c{i // 2}") for i, path in enumerate(paths))
    words = [*TRAIN, "--data", f"csv:{folder}/t.csv", "--columns", "path=file name, label=species,group=camera"]
    words += ["--test-fraction", "0.25", "--validation", "0.2", *(["--root", "pets"] if root else [])]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "validation images (0.2 of the training images, whole groups), 6 test images (0.25 of the" in out
    facts = load_checkpoint(Path("run"))["facts"]
    assert facts["source"] == f"csv:{(folder / 't.csv').resolve()}"
    assert facts["root"] == str(pets)
    assert facts["parts"]["columns"] == {"path": "file name", "label": "species", "group": "camera"}
    (pets.parent / "elsewhere").mkdir()
    monkeypatch.chdir(pets.parent / "elsewhere")
    assert main(["eval", "--checkpoint", "../run"]) == 0
    monkeypatch.chdir(pets.parent)
    same_test_images()
    assert main(["report", "importance", "run"]) == 0
    for text in ("path", "path=", "=x", ""):
        assert f"--columns: expected name=column,name=column, got {text!r}" in refused(
            capsys, *TRAIN, "--data", "csv:t.csv", "--columns", text
        )
    error = refused(capsys, *TRAIN, "--data", f"csv:{folder}/t.csv")
    assert f"{folder / 't.csv'}:1: expected a column path, got the columns 'file name', 'species', 'camera'" in error


def test_a_run_evaluates_another_table(pets):
    """Its paths are relative to its own folder."""
    assert main([*TRAIN, "--data", "folder:pets", "--root", "elsewhere"]) == 0
    paths = sorted(pets.rglob("*.png"))
    lines = [f"{path.relative_to(pets)},{path.parent.name},{path.parent.parent.name}" for path in paths]
    (pets / "t.csv").write_text("\n".join(("path,label,split", *lines)))
    same_test_images("--data", "csv:pets/t.csv")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"validation": "x"}, "facts.parts.validation: expected a finite number from 0 to 1, got 'x'"),
        ({"columns": {"path": 1}}, "facts.parts.columns.path: expected text, got 1"),
        ({"columns": {"path": "x"}}, "facts.source: columns: expected none, since only csv: has columns"),
        ({"class_names": "x"}, None),  # is not used
    ],
)
def test_parts_in_a_checkpoint_are_checked(parts, message, pets, capsys):
    assert main([*TRAIN, "--data", "folder:pets"]) == 0
    saved = load_checkpoint(Path("run"))
    saved["facts"]["parts"] = parts
    save_checkpoint(Path("run/checkpoint.pt"), {name: value for name, value in saved.items() if name != "format"})
    if message is None:
        same_test_images()
    else:
        assert message in refused(capsys, "eval", "--checkpoint", "run")


@pytest.mark.filterwarnings("error:.*has changed since:")
def test_a_test_list(pets, capsys):
    for part in ("train", "test"):
        paths = sorted((pets / part).rglob("*.png"))
        order = ("cat", "dog", "emu")
        lines = [f"{path.relative_to(pets)}\t{order.index(path.parent.name)}\n" for path in paths]
        Path(f"my {part[1:]}").write_text("".join(lines))
    words = [*TRAIN, "--data", "list:my rain", "--root", "pets"]
    assert "list: expected a test list for my rain; give a list with --test, or" in refused(capsys, *words)
    assert main([*words, "--test", "my est"]) == 0
    assert "6 test images (my est); " in capsys.readouterr().out
    assert load_checkpoint(Path("run"))["facts"]["parts"] == {"test": str(pets.parent / "my est")}
    same_test_images()
    error = refused(capsys, *TRAIN, "--data", "folder:pets", "--test", "my est")
    assert "--test: expected none, since only list: has a test list, got my est" in error


def test_validation_images_in_a_recipe(pets, capsys):
    Path("own.yaml").write_text("data: folder:pets\nvalidation: 0.2\nepochs: 1\nbatch_size: 6\nimage_size: 8\n")
    assert main(["train", "--config", "own.yaml", "--out", "run"]) == 0
    assert "4 validation images (0.2 of the training images), 6 test images (test/)" in capsys.readouterr().out
    Path("own.yaml").write_text("data: folder:pets\nvalidation: 2.0\n")
    error = refused(capsys, "train", "--config", "own.yaml", "--out", "other")
    assert "--config own.yaml:2: validation: expected a number above 0 and below 1, got 2.0" in error


@pytest.mark.filterwarnings("error:.*has changed since:")
def test_cross_validation(pets, capsys):
    words = [*TRAIN, "--data", "folder:pets", "--folds", "3"]
    for fold in ("1", "2"):
        assert main([*words, "--fold", fold, "--validation", "0.25", "--out", f"run{fold}"]) == 0
        out = capsys.readouterr().out
        assert f", 3 validation images (0.25 of the training images), 6 test images (fold {fold} of 3 of the" in out
        assert "of the training images; the 6 test images of the source are not used); " in out
    first, second = (load_checkpoint(Path(run))["facts"] for run in ("run1", "run2"))
    assert first["parts"] == {"validation": 0.25, "folds": 3, "fold": 1}
    assert first["digests"]["test file names"] != second["digests"]["test file names"]
    assert main(["report", "run1", "run2"]) == 0
    out = capsys.readouterr().out
    assert " ± " in out
    assert "mean" in out  # the label is folded in a narrow terminal
    Path("run1").rename("run")
    same_test_images()
    assert main(["report", "importance", "run"]) == 0
    (pets / "test").rename(pets.parent / "unused")
    same_test_images()  # the source needs no test images
    for more, message in (
        ([], "--fold: expected a number from 1 to 3, the number of folds, got none"),
        (["--fold", "4"], "--fold: expected a number from 1 to 3, the number of folds, got 4"),
        (["--fold", "1", "--test-fraction", "0.2"], "--test-fraction: expected none with folds, which test all images"),
        (
            ["--fold", "1", "--folds", "7"],
            "--folds: expected at most 6, the images of the largest class that can be te",
        ),
        (["--fold", "1", "--folds", "1"], "--folds: expected at least 2, got 1"),
        (["--fold", "1", "--folds", "none"], "--fold: expected none without the number of folds, got 1"),
    ):
        assert message in refused(capsys, *words, *more)
