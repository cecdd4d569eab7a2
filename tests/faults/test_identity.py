"""If data change between two starts of a run, the error names what differs."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from faults.conftest import same_bits, tiny, tiny_npz
from ltfast.cli import main
from ltfast.engine.checkpoint import CHECKPOINT, load_checkpoint

FILES = ["--batch-size", "4", "--image-size", "8", "--epochs", "1"]


def images(folder, names=("bird", "cat", "dog")):
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in names:
            (folder / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")


def change(path, **changes):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{name: changes.get(name, lambda array: array)(array) for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"x_train": lambda x: 255 - x}, "training images"),
        ({"y_train": lambda y: y[::-1].copy()}, "training labels"),
        ({"x_test": lambda x: np.ascontiguousarray(x[:, ::-1])}, "test images"),
        ({"y_test": lambda y: 1 - y}, "test labels"),
    ],
)
def test_changed_arrays_are_refused_by_name(changes, differs, tmp_path, capsys):
    words = [*tiny("ce", tiny_npz(tmp_path / "d.npz", [6, 6]), batch_size=4), "--out", str(tmp_path / "run")]
    assert main(words) == 0
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    change(tmp_path / "d.npz", **changes)
    for more in ([], ["--workers", "0"]):
        assert main([*words, *more]) == 2
        message = f"checkpoint {tmp_path}/run/{CHECKPOINT} belongs to a run with other data. What differs: {differs}. "
        assert message in capsys.readouterr().err
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before


def renamed(folder):
    for part in ("train", "test"):
        (folder / part / "cat").rename(folder / part / "zebra")


def replaced(folder):
    Image.new("RGB", (40, 40)).save(folder / "train" / "dog" / "2.png")


def moved_to_another_class(folder):
    (folder / "test" / "dog" / "2.png").rename(folder / "test" / "cat" / "9.png")


@pytest.mark.parametrize(
    ("act", "differs"),
    [
        (renamed, "class names (class 1 was 'cat' and is now 'dog'), training file names, test file names"),
        (replaced, "training file sizes"),
        (moved_to_another_class, "test labels, test file names"),
    ],
)
def test_changed_files_are_refused_by_name(act, differs, tmp_path, capsys):
    images(tmp_path / "d")
    words = ["train", "--data", f"folder:{tmp_path}/d", *FILES, "--out", str(tmp_path / "run")]
    assert main(words) == 0
    act(tmp_path / "d")
    assert main(words) == 2
    assert f"What differs: {differs}" in capsys.readouterr().err


def test_a_run_goes_on_with_its_data_in_another_folder(tmp_path, monkeypatch, capsys):
    words = ["train", "--data", "folder:d", *FILES, "--epochs", "2"]
    (tmp_path / "one").mkdir()
    images(tmp_path / "one" / "d")
    monkeypatch.chdir(tmp_path / "one")
    assert main([*words, "--out", "run"]) == 0
    state = load_checkpoint(tmp_path / "one" / "run")
    shutil.move(tmp_path / "one", tmp_path / "two")
    monkeypatch.chdir(tmp_path / "two")
    assert main([*words, "--out", "run"]) == 0
    assert "holds a finished run of these settings: nothing to do" in capsys.readouterr().out
    assert sorted(state["facts"]["digests"]) == [
        "class names",
        *(f"{part} {name}" for part in ("test", "training") for name in ("file names", "file sizes", "labels")),
    ]


def test_a_checkpoint_that_does_not_know_its_data_is_continued_with_a_word(tmp_path, capsys):
    words = tiny("ce", tiny_npz(tmp_path / "d.npz", [6, 6]), batch_size=4)
    for name in ("new", "old"):
        assert main([*words, "--out", str(tmp_path / name)]) == 0
    state = load_checkpoint(tmp_path / "old")
    del state["facts"]["digests"]
    torch.save(state, tmp_path / "old" / CHECKPOINT)
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "old")]) == 0
    assert "does not say what its data were (an older ltfast wrote it): not compared" in capsys.readouterr().out
    assert same_bits(tmp_path / "old", tmp_path / "new")


def test_eval_warns_of_changed_test_images_and_refuses_renamed_classes(tmp_path, capsys):
    images(tmp_path / "d")
    words = ["train", "--data", f"folder:{tmp_path}/d", *FILES, "--out", str(tmp_path / "run")]
    assert main(words) == 0
    evaluate = ["eval", "--checkpoint", str(tmp_path / "run")]
    Image.new("RGB", (40, 40)).save(tmp_path / "d" / "test" / "dog" / "2.png")
    with pytest.warns(UserWarning, match=r"d has changed since the run was evaluated on it.* differs: test file sizes"):
        assert main(evaluate) == 0
    renamed(tmp_path / "d")
    assert main(evaluate) == 2
    assert "expected only classes of the training set, got test images of 'zebra'" in capsys.readouterr().err


def test_importance_needs_the_training_images(tmp_path, capsys):
    words = [*tiny("ce", tiny_npz(tmp_path / "d.npz", [6, 6]), batch_size=4), "--out", str(tmp_path / "run")]
    assert main(words) == 0
    change(tmp_path / "d.npz", x_train=lambda x: 255 - x)
    assert main(["report", "importance", str(tmp_path / "run"), "--out", str(tmp_path / "i.png")]) == 2
    assert "was trained. What differs: " in capsys.readouterr().err
