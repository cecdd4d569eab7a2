"""Invalid data either raise an error that names the problem, or are trained on to the end."""

import json

import numpy as np
import pytest
from PIL import Image

from faults.conftest import METHODS, same_bits, tiny, tiny_folder, tiny_npz
from ltfast.cli import main
from ltfast.data import FileDataset
from ltfast.engine.checkpoint import load_checkpoint

FILES = ["--epochs", "1", "--batch-size", "4", "--image-size", "8"]


def fails(words, capsys):
    """The one-line message and the exit status of a command that fails."""
    status = main([str(word) for word in words])
    error = capsys.readouterr().err
    assert error.startswith("ltfast: error: ")
    assert error.count("\n") == 1
    return status, error


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([12], "expected at least 2 classes, got one: 0"),
        ([1], "expected at least 2 classes, got one: 0"),
        ([4, 0, 4], "expected training images of all 3 classes, but 1 have none: 1"),
    ],
)
def test_one_class_one_image_and_an_empty_class_are_refused(counts, message, tmp_path, capsys):
    source = tiny_npz(tmp_path / "d.npz", counts)
    status, error = fails(["train", "--data", source, "--out", tmp_path / "run"], capsys)
    assert status == 2
    assert f"{tmp_path}/d.npz: {message}" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", METHODS)
def test_fewer_images_than_a_batch_are_refused_by_name(method, encoder, tmp_path, capsys):
    source = tiny_npz(tmp_path / "d.npz", [2, 1, 1])
    words = tiny(method, source, batch_size=64, encoder=encoder)
    status, error = fails([*words, "--out", tmp_path / "run"], capsys)
    assert status == 2
    assert "--batch-size: expected at most 4, the images of an epoch, got 64" in error


@pytest.mark.parametrize("method", METHODS)
def test_one_image_a_class_is_trained_on(method, encoder, tmp_path):
    """One class has no test images."""
    source = tiny_npz(tmp_path / "d.npz", [1, 1, 1])
    with np.load(tmp_path / "d.npz") as file:
        arrays = dict(file)
    keep = arrays["y_test"] < 2
    np.savez(tmp_path / "d.npz", **arrays | {name: arrays[name][keep] for name in ("x_test", "y_test")})
    assert main([*tiny(method, source, batch_size=2, encoder=encoder), "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["class_counts"] == [1, 1, 1]
    assert [accuracy is None for accuracy in metrics["per_class"]] == [False, False, True]
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / "run")["model"].values())


def cut_off(path):
    path.write_bytes(path.read_bytes()[:120])


FAULTS = {
    "no image": lambda path: path.write_bytes(b"no image"),
    "empty": lambda path: path.write_bytes(b""),
    "16 bits": lambda path: Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(path),
}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_image_with_a_wrong_header_is_named_before_training(part, fault, tmp_path, capsys):
    source = tiny_folder(tmp_path / "d")
    broken = tmp_path / "d" / part / "b" / "1.png"
    FAULTS[fault](broken)
    status, error = fails(["train", "--data", source, *FILES, "--out", tmp_path / "run"], capsys)
    assert status == 2
    assert f"cannot decode image {broken}: " in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("part", "workers"), [("train", "0"), ("train", "1"), ("test", "0"), ("test", "1")])
def test_an_image_that_is_damaged_behind_its_header_is_named(part, workers, tmp_path, capsys):
    source = tiny_folder(tmp_path / "d")
    broken = tmp_path / "d" / part / "b" / "1.png"
    cut_off(broken)
    out = tmp_path / "run"
    status, error = fails(["train", "--data", source, *FILES, "--workers", workers, "--out", out], capsys)
    assert status == 2
    assert f"cannot decode image {broken}: " in error
    # the training before the evaluation is kept
    assert (out / "checkpoint.pt").exists() == (part == "test")


@pytest.mark.slow
def test_images_that_cannot_be_decoded_can_be_left_out(tmp_path, capsys):
    """Both training and test images are skipped. The run can be resumed, evaluated and analysed without them."""
    source = tiny_folder(tmp_path / "d", per_class=(7, 3))
    good = tiny_folder(tmp_path / "good", per_class=(7, 3))
    for part in ("train", "test"):
        cut_off(tmp_path / "d" / part / "b" / "1.png")
        (tmp_path / "good" / part / "b" / "1.png").unlink()
    runs = {"skipped": [source, "--skip-broken"], "without": [good]}
    for name, words in runs.items():
        assert main(["train", *FILES, "--out", str(tmp_path / name), "--data", *words]) == 0
        output = capsys.readouterr().out
        assert "13 training images in 2 classes (a, b) of 7 to 6, 5 test images" in output
        for part, number in (("train", "1 of 14 training"), ("test", "1 of 6 test")):
            line = f"left out {number} images:\n  cannot decode image {tmp_path}/d/{part}/b/1.png: "
            assert (line in output) == (name == "skipped")
    assert same_bits(tmp_path / "skipped", tmp_path / "without")

    again = ["train", *FILES, "--out", str(tmp_path / "skipped"), "--data", *runs["skipped"]]
    assert main(again) == 0
    assert "holds a finished run of these settings" in capsys.readouterr().out
    assert "skip_broken was True and is now False" in fails(again[:-1], capsys)[1]

    assert main(["eval", "--checkpoint", str(tmp_path / "skipped")]) == 0
    accuracy = json.loads((tmp_path / "skipped" / "eval.json").read_text())["per_class"]
    assert accuracy == json.loads((tmp_path / "skipped" / "metrics.json").read_text())["per_class"]
    words = ["eval", "--checkpoint", tmp_path / "without", "--data", source]
    assert f"cannot decode image {tmp_path}/d/test/b/1.png" in fails(words, capsys)[1]
    assert main([str(word) for word in [*words, "--skip-broken"]]) == 0
    picture = str(tmp_path / "importance.png")
    assert main(["report", "importance", str(tmp_path / "skipped"), "--images", "4", "--out", picture]) == 0


def test_headers_are_looked_at_once_for_a_run(tmp_path, monkeypatch):
    looked = []
    look = FileDataset.check_header
    monkeypatch.setattr(FileDataset, "check_header", lambda self, index: looked.append(index) or look(self, index))
    words = ["train", "--data", tiny_folder(tmp_path / "d"), *FILES, "--out", str(tmp_path / "run")]
    for _ in range(2):
        assert main(words) == 0
        assert len(looked) == 18


def test_test_images_that_would_be_enormous_are_evaluated(tmp_path):
    """Resizing whole images instead of the cropped part would take 12 GB each."""
    source = tiny_folder(tmp_path / "d")
    for part, size in (("train", (60_000, 1)), ("test", (60_000, 1)), ("test", (1, 60_000))):
        path = tmp_path / "d" / part / "b" / f"{size[0]}.png"
        Image.new("1", size).save(path)
        assert path.stat().st_size < 30_000
    assert main(["train", "--data", source, *FILES, "--image-size", "64", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_image_that_a_list_names_and_nobody_has_is_named(part, tmp_path, capsys):
    tiny_folder(tmp_path)
    for name, number in (("train", 6), ("test", 3)):
        lines = [f"{name}/{folder}/{i}.png {label}\n" for label, folder in enumerate("ab") for i in range(number)]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    (tmp_path / part / "b" / "2.png").unlink()
    words = ["train", "--data", f"list:{tmp_path}/train.txt", "--root", tmp_path, *FILES, "--out", tmp_path / "run"]
    status, error = fails(words, capsys)
    assert status == 2
    assert f"no image file {tmp_path}/{part}/b/2.png" in error


def test_grey_palette_transparent_and_tiny_images_are_trained_on(tmp_path):
    source = tiny_folder(tmp_path / "d")
    for i, mode in enumerate(("L", "P", "RGBA", "LA", "1")):
        path = tmp_path / "d" / "train" / "a" / f"{i}.png"
        Image.open(path).convert(mode).save(path)
    Image.new("RGB", (1, 1)).save(tmp_path / "d" / "train" / "b" / "0.png")
    assert main(["train", "--data", source, *FILES, "--out", str(tmp_path / "run")]) == 0
