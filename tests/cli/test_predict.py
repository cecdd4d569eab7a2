"""`ltfast predict` and `ltfast.runs.load` use the run's folder alone."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2

from ltfast.cli import main
from ltfast.data import load
from ltfast.engine import RunSettings
from ltfast.runs.restore import restore_with_test_images

TRAIN = ["--image-size", "8", "--epochs", "1", "--batch-size", "10"]
CROPS = ("five_crop", "ten_crop")


def written(folder, part, images):
    """Writes some digits of each class to a folder per class."""
    labels = images.labels.numpy()
    for label in range(10):
        (folder / part / str(label)).mkdir(parents=True)
        for i in np.flatnonzero(labels == label)[: (5 - label // 3 if part == "train" else 4)]:
            images.image(int(i)).save(folder / part / str(label) / f"{i:04}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with digits as images, a run on them, its own scores of the test images, its `eval.json`, and one with
    each of CROPS. The data are moved away afterwards; only the test images are left, elsewhere."""
    folder = tmp_path_factory.mktemp("predict")
    digits = load("digits")
    written(folder / "data", "train", digits.train)
    written(folder / "data", "test", digits.test)
    run = folder / "run"
    assert main(["train", "--data", f"folder:{folder}/data", *TRAIN, "--out", str(run)]) == 0
    shutil.move(folder / "data" / "train", folder / "moved")
    assert main(["eval", "--checkpoint", str(run)]) == 0
    for crops in CROPS:
        words = ["eval", "--checkpoint", str(run), "--tta", crops, "--out", str(run / f"{crops}.json")]
        assert main(words) == 0
    tested = restore_with_test_images(run, run=RunSettings())
    with torch.no_grad():
        scores = torch.cat([tested.predictor.eval().predict(*batch[:-1]) for batch in tested.plan.test])
    shutil.move(folder / "data" / "test", folder / "images")
    (folder / "data").rmdir()
    torch.save((scores, tested.plan.test.dataset.dataset.labels), folder / "scores.pt")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The current folder, with links to the run and the images of `trained`."""
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(trained / "run")
    Path("images").symlink_to(trained / "images")
    return tmp_path


def predicted(*words, out="predictions.csv"):
    assert main(["predict", "--checkpoint", "run", *map(str, words), "--out", str(out)]) == 0
    return rows(out)


def rows(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def refused(capsys, *words):
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ltfast: error: ")
    assert error.count("\n") == 1
    return error


def test_predictions_are_those_of_eval(trained, here, capsys):
    found = predicted("images", "--top", "10")
    assert "written to predictions.csv: 40 images\n" in capsys.readouterr().out
    assert list(found[0])[:5] == ["path", "class", "probability", "class_2", "probability_2"]
    assert list(found[0])[-1] == "error"
    scores, labels = torch.load(trained / "scores.pt", weights_only=True)
    assert [row["path"] for row in found] == sorted(row["path"] for row in found)
    assert [int(row["path"].split("/")[1]) for row in found] == labels.tolist()
    assert [int(row["class"]) for row in found] == scores.argmax(1).tolist()
    expected = scores.double().softmax(1).float()
    for i, row in enumerate(found):
        for rank in range(10):
            end = f"_{rank + 1}" if rank else ""
            assert np.float32(row[f"probability{end}"]) == expected[i, int(row[f"class{end}"])].item()
    for name in ("eval_predictions.csv", "predictions.csv"):  # of `ltfast eval`, and of the end of the training
        listed = rows(trained / "run" / name)
        assert [row["path"].split("/")[-2:] for row in listed] == [row["path"].split("/")[-2:] for row in found]
        assert [row["label"] for row in listed] == [row["path"].split("/")[-2] for row in found]
        for key in ("class", "probability"):
            assert [row[key] for row in listed] == [row[key] for row in found]
        assert [float(row["label_probability"]) for row in listed] == pytest.approx(
            expected[torch.arange(40), labels].tolist()
        )
    content = json.loads((trained / "run" / "eval.json").read_text())
    report = json.loads((trained / "run" / "metrics.json").read_text())
    same = ("macro_f1", "expected_calibration_error", "intervals", "classes", "class_names")
    assert all(content[name] == report[name] for name in same)
    assert content["classes"][3]["name"] == "3"
    evaluated = content["per_class"]
    hits = [100 * np.mean([row["class"] == str(c) for row in found if row["path"].split("/")[1] == str(c)])
            for c in range(10)]  # fmt: skip
    assert hits == pytest.approx(evaluated)


def test_export_and_load_need_no_data(trained, here):
    from ltfast.runs import load as load_run

    assert main(["export", "--checkpoint", "run", "--raw", "--out", "model.pt2"]) == 0
    classifier = load_run("run", "cpu")
    assert classifier.class_names == [str(digit) for digit in range(10)]
    assert classifier.metrics == json.loads((trained / "run" / "metrics.json").read_text())
    paths = sorted(Path("images").rglob("*.png"))
    found = classifier.predict(paths)
    expected = torch.load(trained / "scores.pt", weights_only=True)[0].double().softmax(1).float()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    with torch.no_grad():
        views = torch.stack([classifier.transform(Image.open(path)) for path in paths])
        torch.testing.assert_close(classifier.module(views).softmax(1), expected)
    with Image.open(paths[0]) as first:
        arrays = np.stack([np.asarray(first.convert(mode).convert("RGB")) for mode in ("L", "RGB")])
        same = classifier.predict([first, str(paths[0]), np.asarray(first), arrays[1]], batch_size=1)
    torch.testing.assert_close(same, expected[:1].expand(4, -1))
    torch.testing.assert_close(classifier.predict(arrays), expected[:1].expand(2, -1))
    assert classifier.predict([]).shape == (0, 10)
    exported = torch.export.load("model.pt2").module()
    torch.testing.assert_close(exported(views).softmax(1), expected)


def test_images_that_cannot_be_predicted(here):
    from ltfast.errors import InputError, InputTypeError
    from ltfast.runs import load as load_run

    classifier = load_run("run", "cpu")
    grey = np.zeros((8, 8), np.uint8)
    with pytest.raises(InputTypeError, match=r"images: expected a list of images, got one str: use \[image\]"):
        classifier.predict("a.png")
    with pytest.raises(InputError, match=r"expected an array \(N, H, W, 3\), or a list of arrays, got shape \(8, 8\)"):
        classifier.predict(grey)
    with pytest.raises(InputTypeError, match=r"images\[1\]: expected uint8 in 0..255, got float64"):
        classifier.predict([grey, grey / 2])
    with pytest.raises(InputError, match=r"images\[0\]: expected shape \(H, W\), .*, got \(8, 8, 4\)"):
        classifier.predict([np.zeros((8, 8, 4), np.uint8)])
    with pytest.raises(InputError, match=r"images\[0\]: expected 8 bits per channel, got mode I;16"):
        classifier.predict([Image.new("I;16", (8, 8))])
    with pytest.raises(InputTypeError, match=r"images\[0\]: expected a path, .* got int"):
        classifier.predict([3])
    with pytest.raises(FileNotFoundError, match=r"no image file nowhere\.png"):
        classifier.predict(["nowhere.png"])


def test_a_run_on_arrays_takes_files_of_any_size(tmp_path, monkeypatch):
    from ltfast.runs import load as load_run

    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", "digits", "--imbalance", "20", "--epochs", "1", "--loss", "agcl", "--out", "run"]
    assert main(words) == 0
    tested = restore_with_test_images(Path("run"), run=RunSettings())
    images, labels = next(iter(tested.plan.test))
    with torch.no_grad():
        cosines = tested.predictor.eval().predict(images)
    test = load("digits").test
    classifier = load_run("run", "cpu")
    found = classifier.predict([test.image(i) for i in range(len(labels))])
    torch.testing.assert_close(found, (20 * cosines).softmax(1))  # the loss's scale
    large = [test.image(i).resize((32, 32), Image.Resampling.NEAREST) for i in range(8)]
    small = [image.resize((8, 8), Image.Resampling.BILINEAR) for image in large]
    wide = Image.new("L", (10, 8))
    wide.paste(test.image(0), (1, 0))
    torch.testing.assert_close(classifier.predict([wide]), found[:1])
    assert torch.equal(classifier.predict(large), classifier.predict(small))


def test_each_kind_of_input(here):
    names = sorted(str(path) for path in Path("images", "3").iterdir())
    Path("deep/a/b").mkdir(parents=True)
    Path("deep/.hidden").mkdir()
    for target in ("deep/2.png", "deep/a/1.PNG", "deep/a/b/0.png", "deep/.hidden/3.png"):
        shutil.copy(names[0], target)
    Path("deep/notes.md").touch()
    Path("deep/loop").symlink_to("a")
    Path("lists").mkdir()
    Path("lists/some.txt").write_text(f"../{names[0]}\r\n\n  ../{names[1]}  \n", encoding="utf-8-sig")
    Path("lists/wide.csv").write_text(f'label;path\n3;"../{names[2]}"\n\n3;../{names[3]}\n')
    Path("lists/tabs.tsv").write_bytes(b"path\tx\n../" + names[0].encode() + b"\t1\n")
    shutil.copy(names[0], "no_extension")
    found = predicted("no_extension", "deep", "lists/some.txt", "lists/wide.csv", "lists/tabs.tsv", names[1])
    assert [row["path"] for row in found] == [
        *("no_extension", "deep/2.png", "deep/a/1.PNG", "deep/a/b/0.png"),
        *(f"lists/../{name}" for name in (*names[:4], names[0])),
        names[1],
    ]
    assert not any(row["error"] for row in found)


def test_a_broken_image_is_a_row_with_its_reason(here, capsys):
    shutil.copytree("images/1", "some")
    broken, *others = sorted(Path("some").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    Path("some/link.png").symlink_to("nowhere.png")
    Path("some/text.jpg").write_text("not an image")
    whole = {row["path"]: row for row in predicted(*others, out="others.csv")}
    for workers in ("0", "2"):
        table = predicted("some", "--workers", workers, "--batch-size", "2", out=f"{workers}.csv")
        found = {row["path"]: row for row in table}
        assert "of which 3 broken\n" in capsys.readouterr().out
        assert [path for path, row in found.items() if row["error"]] == [str(broken), "some/link.png", "some/text.jpg"]
        assert found[str(broken)]["error"].startswith(f"cannot decode image {broken}: ")
        assert found["some/link.png"]["error"] == "no image file some/link.png"
        assert found[str(broken)]["class"] == found[str(broken)]["probability_2"] == ""
        assert [found[str(path)]["class"] for path in others] == [whole[str(path)]["class"] for path in others]


def test_paths_are_read_as_they_are_needed(here):
    from ltfast.runs import load as load_run
    from ltfast.runs.image_paths import ImagePaths
    from ltfast.runs.predict import predictions

    read = []

    class Counted(ImagePaths):
        def __iter__(self):
            for path in super().__iter__():
                read.append(path)
                yield path

    paths = Counted(["images"])
    assert len(paths) == len(read) == 40
    read.clear()
    batches = predictions(load_run("run", "cpu"), paths, batch_size=8)
    first = next(batches)
    assert [row.path for row in first] == read[:8]
    assert len(read) <= 16
    batches.close()


def test_equal_probabilities_are_ordered_as_by_eval(here, monkeypatch):
    from ltfast.runs import load as load_run
    from ltfast.runs import predict
    from ltfast.runs.image_paths import ImagePaths

    monkeypatch.setattr(predict, "probabilities", lambda _, views, __: torch.full((len(views[0]), 10), 0.1))
    (rows,) = predict.predictions(load_run("run", "cpu"), ImagePaths(["images/1"]))
    assert rows[0].classes == ["0", "1", "2"]


def test_names_of_any_bytes(here):
    name = 'a "b",\n\udcff.png'
    shutil.copy(next(Path("images/1").iterdir()), name)
    (row,) = predicted(name)
    assert row["path"] == name
    before = Path("predictions.csv").read_bytes()
    predicted(name)
    assert Path("predictions.csv").read_bytes() == before


@pytest.mark.parametrize(("ending", "tta"), [("csv", "3"), ("json", "3"), ("csv", "five_crop")])
def test_an_interrupted_command_goes_on_after_the_last_complete_row(ending, tta, here, capsys):
    out = Path(f"p.{ending}")
    words = ["predict", "--checkpoint", "run", "images", "--batch-size", "8", "--tta", tta, "--out", str(out)]
    assert main(words) == 0
    whole = out.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in (0, 5, ends[0], ends[3], ends[3] + 20, ends[-2], len(whole) - 1):
        out.write_bytes(whole[:cut])
        capsys.readouterr()
        assert main(words) == 0
        assert out.read_bytes() == whole
        done = sum(end <= cut for end in ends) - (ending == "csv")
        assert (f"has {done} of 40 rows: continuing" in capsys.readouterr().out) == (done > 0)
    assert main(words) == 0
    assert f"{out} has 40 of 40 rows: nothing to do" in capsys.readouterr().out
    assert out.read_bytes() == whole


def test_an_interrupt_keeps_the_rows(here, capsys, monkeypatch):
    import os
    import signal

    from ltfast.runs import predict

    words = ["predict", "--checkpoint", "run", "images", "--batch-size", "8"]
    probabilities = predict.probabilities
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return probabilities(*args)

    monkeypatch.setattr(predict, "probabilities", interrupted)
    assert main(words) == 130
    assert "ltfast: interrupted; the same command continues after the last row" in capsys.readouterr().err
    assert len(rows("predictions.csv")) == 16
    assert main(words) == 0
    assert len(rows("predictions.csv")) == 40
    assert len(calls) == 2 + 3


def test_predictions_of_other_commands_are_not_mixed(here, capsys):
    words = ["--checkpoint", "run", "images/1", "--out", "p.csv"]
    assert main(["predict", *words]) == 0
    for tta in ("2", "five_crop"):
        assert f"--out: p.csv has predictions of another command, whose tta was 1 and is now {tta}" in refused(
            capsys, *words, "--tta", tta
        )
    (first, *_) = sorted(Path("images/1").iterdir())
    error = refused(capsys, "--checkpoint", "run", "images/2", "--out", "p.csv")
    assert f"--out: p.csv has predictions of other images: image 1 was {first} and is now images/2/" in error
    Path("own.csv").write_text("path\nimages/1\n")
    assert "--out: expected a new file, got own.csv" in refused(capsys, *words[:-1], "own.csv")
    assert Path("own.csv").read_text() == "path\nimages/1\n"


def test_json_has_an_object_per_line(here):
    table = predicted("images/2", "--abstain", "1")
    Path("missing.txt").write_text("nowhere.png\n")
    assert main(["predict", "--checkpoint", "run", "images/2", "missing.txt", "--abstain", "1", "--out", "p.json"]) == 0
    *lines, broken = (json.loads(line) for line in Path("p.json").read_text().splitlines())
    for row, line in zip(table, lines, strict=True):
        assert list(row) == list(line)
        assert {name: str(value) for name, value in line.items() if value is not None} == {
            name: value for name, value in row.items() if name != "error"
        }
        assert (line["class"], line["error"]) == ("", None)
    assert broken == {**dict.fromkeys(lines[0]), "path": "nowhere.png", "error": "no image file nowhere.png"}


def test_parquet(here):
    parquet = pytest.importorskip("pyarrow.parquet")
    Path("missing.txt").write_text("nowhere.png\n")
    table = predicted("images", "missing.txt")
    assert main(["predict", "--checkpoint", "run", "images", "missing.txt", "--out", "p.parquet"]) == 0
    found = parquet.read_table("p.parquet").to_pylist()
    assert list(found[0]) == list(table[0])
    for row, line in zip(found, table, strict=True):
        assert {name: "" if value is None else str(np.float32(value)) if name.startswith("prob") else value
                for name, value in row.items()} == line  # fmt: skip


def test_parquet_needs_pyarrow(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    error = refused(capsys, "--checkpoint", "run", "images", "--out", "p.parquet")
    assert "--out: a .parquet file needs the package pyarrow (pip install pyarrow)" in error


def test_top_and_abstain(here, capsys):
    found = predicted("images", "--top", "1")
    assert list(found[0]) == ["path", "class", "probability", "error"]
    assert len(list(predicted("images", "--top", "50", out="all.csv")[0])) == 22
    least = sorted(float(row["probability"]) for row in found)[20]
    capsys.readouterr()
    sure = predicted("images", "--top", "1", "--abstain", str(least), out="sure.csv")
    assert "written to sure.csv: 40 images, of which 20 without a class\n" in capsys.readouterr().out
    for row, other in zip(found, sure, strict=True):
        assert other["probability"] == row["probability"]
        assert other["class"] == ("" if float(row["probability"]) < least else row["class"])


def test_augmentation_is_the_mean_over_variants(here):
    from ltfast.runs import load as load_run
    from ltfast.runs.classifier import probabilities
    from ltfast.runs.views import Views

    classifier = load_run("run", "cpu")
    paths = sorted(Path("images", "4").iterdir())
    pictures = [Image.open(path).convert("RGB") for path in paths]
    mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    mean = (classifier.predict(pictures) + classifier.predict(mirrored)) / 2
    views = default_collate([Views(classifier.trained, 2)(picture, i) for i, picture in enumerate(pictures)])
    torch.testing.assert_close(probabilities(classifier.predictor, views).float(), mean)
    found = predicted("images/4", "--tta", "2")
    assert [row["class"] for row in found] == [str(c) for c in mean.argmax(1).tolist()]
    many = Views(classifier.trained, 4)
    (views,) = many(pictures[0], 7)
    assert torch.equal(views, *many(pictures[0], 7))
    assert not torch.equal(views, *many(pictures[0], 8))
    assert not torch.equal(views[2], views[3])


@pytest.mark.parametrize(("name", "crops"), [("five_crop", v2.FiveCrop(8)), ("ten_crop", v2.TenCrop(8))])
def test_an_ensemble_of_crops_is_the_mean_of_their_scores(name, crops, trained, here):
    from ltfast.runs import load as load_run

    classifier = load_run("run", "cpu")
    *_, normalise = classifier.trained.transforms[0].transforms
    paths = sorted(Path("images").rglob("*.png"))
    pictures = [Image.open(path).convert("RGB") for path in paths]
    views = torch.stack([normalise(crop) for picture in pictures for crop in crops(v2.Resize(9)(picture))])
    with torch.no_grad():
        expected = classifier.module(views).unflatten(0, (40, -1)).mean(1).double().softmax(1).float()
    found = classifier.predict(paths, tta=name)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, classifier.predict(paths))
    table = predicted("images", "--top", "10", "--tta", name)
    for row, values in zip(table, found, strict=True):
        for rank in range(10):
            end = f"_{rank + 1}" if rank else ""
            assert np.float32(row[f"probability{end}"]) == values[int(row[f"class{end}"])].item()
    content = json.loads((trained / "run" / f"{name}.json").read_text())
    assert content["tta"] == name
    assert json.loads((trained / "run" / "eval.json").read_text())["tta"] is None
    listed = rows(trained / "run" / f"{name}_predictions.csv")
    for key in ("class", "probability"):
        assert [row[key] for row in listed] == [row[key] for row in table]
    hits = [row["class"] == row["path"].split("/")[1] for row in table]
    assert content["top1"] == pytest.approx(100 * np.mean(hits))


def test_a_batch_has_as_many_crops_as_images(here, monkeypatch):
    from ltfast.runs import load as load_run

    classifier = load_run("run", "cpu")
    paths = sorted(Path("images").rglob("*.png"))
    sizes = []
    predict = classifier.predictor.predict
    monkeypatch.setattr(classifier.predictor, "predict", lambda views: sizes.append(len(views)) or predict(views))
    whole = classifier.predict(paths, tta="five_crop")
    assert sizes == [200]
    torch.testing.assert_close(classifier.predict(paths, tta="five_crop", batch_size=64), whole)
    assert sizes[1:] == [60, 60, 60, 20]
    assert classifier.predict(paths[:2], tta="ten_crop", batch_size=4).shape == (2, 10)
    assert sizes[5:] == [10, 10]


@pytest.mark.parametrize("tta", [0, -1, 1.5, "four_crop", "", None])
def test_an_unknown_augmentation_is_refused(tta, here):
    from ltfast.errors import InputError
    from ltfast.runs import load as load_run

    with pytest.raises(InputError, match=f"tta: expected a number of at least 1, five_crop or ten_crop, got {tta!r}"):
        load_run("run", "cpu").predict([], tta=tta)


def test_the_command_and_the_runs_know_the_same_crops():
    from ltfast.cli import options
    from ltfast.runs import crops

    assert options.Crops == crops.Crops
    assert tuple(crops.NUMBER) == CROPS == get_args(crops.Crops)


def test_bad_arguments(here, capsys):
    run = ["--checkpoint", "run"]
    Path("empty").mkdir()
    Path("no_path.csv").write_text("file,label\na.png,1\n")
    Path("short.csv").write_text("label,path\n1\n")
    Path("utf16.txt").write_bytes(b"\xff\xfea")
    for words, message in (
        ([], "required: PATH, --checkpoint"),
        (["images"], "required: --checkpoint"),
        (run, "required: PATH"),
        (["images", "--checkpoint", "nowhere"], "--checkpoint: there is no nowhere"),
        ([*run, "nowhere"], "there is no nowhere; expected image files, folders, .txt lists or CSV files"),
        ([*run, "empty"], "expected images, got none in empty"),
        ([*run, "no_path.csv"], "no_path.csv:1: expected a column path, got file, label"),
        ([*run, "short.csv"], "short.csv:2: expected a path in column 2, got none"),
        ([*run, "utf16.txt"], "utf16.txt: expected text in UTF-16"),
        ([*run, "images", "--out", "p.xls"], "--out: expected a file name that ends with .csv, .json"),
        ([*run, "images", "--out", "empty"], "--out: expected a file name, got the folder 'empty'"),
        ([*run, "images", "--out", "no/p.csv"], "--out: expected a writable folder, got no"),
        ([*run, "images", "--top", "0"], "--top: expected at least 1, got 0"),
        ([*run, "images", "--tta", "0"], "--tta: expected at least 1, got 0"),
        (
            [*run, "images", "--tta", "five-crop"],
            "--tta: expected int or one of five_crop, ten_crop, got 'five-crop'; did you mean five_crop?",
        ),
        ([*run, "images", "--abstain", "1.5"], "--abstain: expected a probability from 0 to 1, got 1.5"),
        ([*run, "images", "--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
        ([*run, "images", "--prior", "trian"], "--prior: expected train, uniform or a CSV file with the columns class"),
        ([*run, "images", "--aggregate", "average"], "--aggregate: expected none, since method 'ce' has no sub-models"),
        ([*run, "images", "--aggregate", "group"], "--aggregate: expected one of instance, average, got 'group'"),
    ):
        assert message in refused(capsys, *words)
    assert not Path("predictions.csv").exists()
