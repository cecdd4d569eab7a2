import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltfast.cli import main
from ltfast.inspection import images
from ltfast.inspection.picture import plot_counts
from ltfast.inspection.suggestion import suggest


def looked(capsys, *words):
    assert main(["data", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_all_findings_of_a_folder(photos, capsys):
    out = looked(capsys, "folder:photos", "--out", "look")
    lines = out.splitlines()
    assert lines[0] == "folder:photos: 41 training, 11 test (test/) images in 3 classes"
    for line in (
        "many: no classes, medium: 1 class, few: 2 classes (many: 101 training images or more; few: fewer than 20)",
        "width in pixels: smallest 28, 5 % 40, median 40, 95 % 40, largest 90",
        "modes: RGB 49, L 2",
        "unreadable images: 1",
        "equal images (all pixels): 3 pairs",
        "  one in training, one in test: 1",
        "  same part and label: 1",
        "    photos/train/cat/0.png (training, cat) and photos/train/dog/equal.png (training, dog)",
        "similar images (perceptual hashes differ in 4 of 64 bits or fewer): 1 pair, 1 at 0 bits",
        "    photos/train/cat/1.png (training, cat) and photos/test/emu/similar.png (test, emu)",
        "images of one colour: 2 (photos/train/emu/black.png, photos/train/emu/grey.png)",
        "left out of photos: 1 not images ('train/dog/notes.txt')",
        "  --loss logit_adjusted, since the largest class has 4.17 times the images of the smallest",
    ):
        assert line in lines
    assert any(line.startswith("  cannot decode image photos/train/dog/broken.png: ") for line in lines)
    assert (
        "  --image-size 32 and --backbone resnet32_cifar, since half of the images have a short side of at most 40"
        in out
    )
    assert lines[-1] == "written to look: data.json, duplicates.csv, counts.png"
    found = json.loads(Path("look/data.json").read_text())
    assert found["images"] == {"training": 41, "test": 11}
    assert found["classes"][0] == {"name": "cat", "training": 25, "test": 4, "group": "medium"}
    assert len(found["unreadable"]) == 1
    assert found["duplicates"]["equal"]["two_parts"] == {"training and test": 1}
    assert found["duplicates"]["similar"]["two_classes"] == 1
    assert found["constant"] == ["photos/train/emu/black.png", "photos/train/emu/grey.png"]
    assert found["suggestion"]["image_size"] == 32
    with open("look/duplicates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["distance"]) for row in rows] == [*[("equal", "")] * 3, ("similar", "0")]
    assert Path("look/counts.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_to_start_with_starts(photos, capsys):
    out = looked(capsys, "folder:photos", "--validation", "0.2", "--groups", "auto")
    command = out.splitlines()[-1].removeprefix("start with: ")
    words = shlex.split(command)
    assert words[:2] == ["ltfast", "train"]
    assert "--validation 0.2 " in command
    assert "--groups auto " in command
    assert "--skip-broken" in words
    options = {"--epochs": "1", "--workers": "0", "--batch-size": "8", "--out": "run"}
    for name, value in options.items():
        words[words.index(name) + 1] = value
    assert main(words[1:]) == 0


def test_a_flat_folder_and_its_parts(photos, capsys):
    (photos / "train").rename("flat")
    out = looked(capsys, "folder:flat")
    assert out.startswith("folder:flat: 41 training images in 3 classes")
    assert "--test-fraction 0.2" in out.splitlines()[-1]
    out = looked(capsys, "folder:flat", "--test-fraction", "0.25", "--imbalance", "2")
    assert "test (0.25 of the training images) images in 3 classes" in out
    assert "--imbalance 2.0 " in out.splitlines()[-1]
    assert out.splitlines()[-1].count("--test-fraction") == 1


def test_groups_in_two_parts_of_a_table(photos, capsys):
    paths = sorted(path for path in photos.rglob("*.png") if path.name != "broken.png")
    with open("t.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "label", "split", "group"))
        for i, path in enumerate(paths):
            table.writerow((path.relative_to(photos), path.parent.name, path.parent.parent.name, f"camera {i % 40}"))
    out = looked(capsys, "csv:t.csv", "--root", "photos", "--columns", "path=file")
    assert "groups with images in training and test: 10 (camera 0, camera 1, camera 2, ...)\n" in out
    assert "--root photos --columns path=file" in out.splitlines()[-1]


def test_arrays(capsys, tmp_path, monkeypatch):
    out = looked(capsys, "digits", "--imbalance", "50")
    assert "modes: L " in out
    assert "--image-size 8 and --backbone digits_convnet, since the images have this size" in out
    assert "--augment basic, which does not flip, since the images are grey" in out
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (12, 10, 6, 3), dtype=np.uint8)  # not square
    x[7] = x[1]
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x_train=x[:6], y_train=np.arange(6) % 2, x_test=x[6:], y_test=np.arange(6) % 2)
    out = looked(capsys, "npz:d.npz")
    assert "width in pixels: smallest 6," in out
    assert "    1 (training, 1) and 1 (test, 1)\n" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folder:nothing"], "no folder nothing"),
        (["nonsense"], "'nonsense' is unknown"),
        (["digits", "--groups", "1,5"], "--groups: expected two falling numbers"),
        (["digits", "--threads", "0"], "--threads: expected at least 1, got 0"),
        (["digits", "--test-fraction", "0.1"], "--test-fraction: expected none, since digits has test images"),
        (["digits", "--nonsense"], "--nonsense: there is no such option"),
        ([], "the following arguments are required: SOURCE"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words, "--out", "look"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("ltfast: error: ")
    assert not Path("look").exists()


def test_no_readable_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "1.png").write_bytes(b"x")
    assert main(["data", "folder:d"]) == 2
    assert "no training image can be decoded: cannot decode image d/a/1.png: expected" in capsys.readouterr().err


def test_interrupted(photos, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "enumerate", interrupt, raising=False)
    assert main(["data", "folder:photos"]) == 130
    assert capsys.readouterr().err == "ltfast: interrupted\n"


def test_names_are_shown_and_not_interpreted(photos, capsys):
    (photos / "train/dog").rename(photos / "train/[red]\x1b")
    (photos / "test/dog").rename(photos / "test/[red]\x1b")
    out = looked(capsys, "folder:photos")
    assert "[red]\\x1b" in out
    assert "\x1b" not in out


def test_many_classes_are_shown_in_part(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for c in range(30):
        (tmp_path / "d" / f"class {c:02}").mkdir(parents=True)
        for i in range(1 + c):
            Image.new("RGB", (8, 8), (c, i, 0)).save(tmp_path / "d" / f"class {c:02}" / f"{i}.png")
    out = looked(capsys, "folder:d")
    assert "... 10 more" in out
    assert "class 29" in out
    assert "class 00" in out
    assert "class 15" not in out


@pytest.mark.parametrize("number", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_picture(number, tmp_path):
    classes = [{"name": f"c{i}", "training": number - i, "group": "many" if i < 5 else "few"} for i in range(number)]
    assert plot_counts(tmp_path / "counts.png", classes, (number - 4, number - 4))
    width, height = Image.open(tmp_path / "counts.png").size
    assert 1200 <= width <= 1600
    assert height == 750


def test_suggestions():
    same = {"counts": [900, 300], "grey": False, "in_files": True, "missing": (), "broken": False}
    large = suggest("folder:my photos", {}, sides=[600, 700], **same)
    assert (large.image_size, large.backbone, large.loss) == (224, "resnet50", "logit_adjusted")
    assert "--data 'folder:my photos' --method ce --loss logit_adjusted --augment imagenet" in large.command
    assert "--batch-size 32 --lr 0.025 --epochs 200 " in large.command
    small = suggest("npz:d.npz", {}, sides=[32], **{**same, "in_files": False, "counts": [30_000, 29_000]})
    assert (small.image_size, small.backbone, small.loss) == (32, "resnet32_cifar", "cross_entropy")
    assert "--augment cifar --batch-size 128 --lr 0.1 --epochs 40 --out" in small.command
