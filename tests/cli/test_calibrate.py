"""`ltfast calibrate`, and the commands that use what it has found."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltfast.cli import main
from ltfast.data import load as load_data
from ltfast.runs import load

TRAIN = ["train", "--data", "digits", "--imbalance", "20", "--validation", "0.2", "--epochs", "1", "--batch-size", "32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on digits with validation images, a run without, and the validation images as files."""
    folder = tmp_path_factory.mktemp("calibrate")
    assert main([*TRAIN, "--out", str(folder / "run")]) == 0
    assert main([*(word for word in TRAIN if word not in ("--validation", "0.2")), "--out", str(folder / "none")]) == 0
    images = load_data("digits", imbalance=20, validation=0.2).validation
    (folder / "images").mkdir()
    for i in range(len(images)):
        images.image(i).save(folder / "images" / f"{i:03}_{images.labels[i]}.png")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The current folder, with copies of the runs, and the images."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "none"):
        shutil.copytree(trained / name, name)
    Path("images").symlink_to(trained / "images")
    return tmp_path


def calibrated(*words, run="run"):
    assert main(["calibrate", "--checkpoint", run, *words]) == 0
    return json.loads(Path(run, "calibration.json").read_text())


def predicted(*words, out="p.csv"):
    assert main(["predict", "--checkpoint", "run", "images", "--out", out, *words]) == 0
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys, *words):
    capsys.readouterr()
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("ltfast: error: ")
    assert error.count("\n") == 1
    return error


def images_and_labels():
    images = load_data("digits", imbalance=20, validation=0.2).validation
    return images.images[..., None], images.labels


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_predictions_are_calibrated(method, here, capsys):
    images, labels = images_and_labels()
    before = load("run", "cpu").predict(images).double()
    assert load("run", "cpu").calibration is None
    content = calibrated("--method", method)
    out = capsys.readouterr().out
    assert f"written to {Path('run/calibration.json')}; predict, eval and export use it, unless --no-cal" in out
    assert f"from {len(images)} validation images of digits: negative log-likelihood " in out
    classifier = load("run", "cpu")
    after = classifier.predict(images).double()
    if method == "temperature":
        torch.testing.assert_close((before.log() / content["temperature"]).softmax(1), after, atol=1e-6, rtol=1e-4)
        assert "distribution" not in content
    else:
        scale, bias = torch.tensor(content["scale"]), torch.tensor(content["bias"])
        plain = load("run", "cpu", calibration=False)
        views = torch.stack([plain.transform(Image.fromarray(image[..., 0])) for image in images])
        with torch.no_grad():
            torch.testing.assert_close((plain.module(views) * scale + bias).softmax(1), after.float())
        torch.testing.assert_close(after.mean(0), torch.tensor(content["distribution"]).double(), atol=1e-6, rtol=0)
    for p, measured in ((before, content["before"]), (after, content["after"])):
        nll = -p[torch.arange(len(p)), labels].log().mean().item()
        assert measured["negative_log_likelihood"] == pytest.approx(nll, abs=1e-5)
        assert measured["accuracy"] == pytest.approx((p.argmax(1) == labels).double().mean().item())
    assert content["after"]["negative_log_likelihood"] <= content["before"]["negative_log_likelihood"]
    assert content["class_names"] == [str(digit) for digit in range(10)]
    assert (content["images"], sum(content["images_per_class"])) == (len(images), len(images))
    with torch.no_grad():
        views = torch.stack([classifier.transform(load_data("digits").test.image(i)) for i in range(3)])
        found = classifier.predict(load_data("digits").test.images[:3, ..., None])
        torch.testing.assert_close(classifier.module(views).softmax(1), found)
    torch.testing.assert_close(load("run", "cpu", calibration=False).predict(images), before.float())

    found = predicted("--top", "10")
    assert f"calibrated by {method} scaling" in capsys.readouterr().out
    for row, p in zip(found, after, strict=True):
        assert float(row["probability"]) == pytest.approx(p.max().item(), abs=1e-6)
    plain = predicted("--no-calibration", out="plain.csv")
    assert "calibrated" not in capsys.readouterr().out
    assert float(plain[0]["probability"]) == pytest.approx(before[0].max().item(), abs=1e-6)
    assert "p.csv has predictions of another command, whose calibration was" in refused(
        capsys, *("predict", "--checkpoint", "run", "images", "--out", "p.csv", "--top", "10", "--no-calibration")
    )


def test_eval_uses_the_calibration(here, capsys):
    calibrated("--method", "vector")
    assert main(["eval", "--checkpoint", "run"]) == 0
    assert "calibrated by vector scaling, from " in capsys.readouterr().out
    test = load_data("digits").test
    found = json.loads(Path("run/eval.json").read_text())
    assert found["calibration"].startswith("vector scaling, from ")
    classes = load("run", "cpu").predict(test.images[..., None]).argmax(1)
    assert found["top1"] == pytest.approx(100 * (classes == test.labels).double().mean().item())
    assert main(["eval", "--checkpoint", "run", "--no-calibration"]) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    found = json.loads(Path("run/eval.json").read_text())
    assert (found["top1"], found["calibration"]) == (metrics["top1"], None)


def test_the_prior_is_corrected_after_the_calibration(here):
    """Temperature scaling keeps the class distribution that the scores follow; vector scaling learns that of the
    images."""
    Path("prior.csv").write_text("class,weight\n" + "".join(f"{c},{c + 1}\n" for c in range(10)))
    wanted = torch.arange(1, 11).double()
    for method in ("temperature", "vector"):
        content = calibrated("--method", method)
        images, _ = images_and_labels()
        classifier = load("run", "cpu")
        followed = classifier.trained.distribution
        if method == "vector":
            torch.testing.assert_close(followed, torch.tensor(content["distribution"]).double())
        p = classifier.predict(images).double()
        expected = (p.log() + (wanted / wanted.sum()).log() - (followed / followed.sum()).log()).softmax(1)
        for row, one in zip(predicted("--prior", "prior.csv", out=f"{method}.csv"), expected, strict=True):
            assert (int(row["class"]), float(row["probability"])) == (
                one.argmax(),
                pytest.approx(one.max().item(), abs=1e-5),
            )


def test_thresholds_hold_for_the_images_that_chose_them(here, capsys):
    _, labels = images_and_labels()
    content = calibrated("--abstain-accuracy", "0.9", "--class-precision", "0.8")
    assert content["abstain"]["accuracy"] == 0.9
    sure = predicted("--abstain", "calibrated", "--batch-size", "7", out="sure.csv")
    kept = [(row["class"], str(label.item())) for row, label in zip(sure, labels, strict=True) if row["class"]]
    if content["abstain"]["threshold"] is None:
        assert not kept
    else:
        assert len(kept) / len(labels) == pytest.approx(content["abstain"]["coverage"])
        assert np.mean([a == b for a, b in kept]) >= 0.9
    precise = predicted("--thresholds", "--batch-size", "7", out="precise.csv")
    for row in content["thresholds"]["classes"]:
        own = [label.item() for one, label in zip(precise, labels, strict=True) if one["class"] == row["class"]]
        assert len(own) == (row["images"] or 0)
        if row["threshold"] is None:
            assert row["reason"]
        else:
            assert np.mean([label == int(row["class"]) for label in own]) == pytest.approx(row["precision"])
            assert row["precision"] >= 0.8
    content = calibrated("--class-recall", "0.5")
    found = predicted("--thresholds", out="recall.csv")
    for row in content["thresholds"]["classes"]:
        hits = [one["class"] for one, label in zip(found, labels, strict=True) if str(label.item()) == row["class"]]
        if row["threshold"] is not None:
            assert hits.count(row["class"]) / len(hits) == pytest.approx(row["recall"])
            assert row["recall"] >= 0.5


def test_other_images(here, capsys):
    content = calibrated("--data", "digits")
    assert (content["images"], content["source"]) == (697, "test images of digits")
    assert calibrated("--data", "digits", run="none")["images"] == 697


def test_a_run_without_a_calibration(here, capsys):
    run = ["predict", "--checkpoint", "run", "images"]
    hint = "expected a run with a calibration: `ltfast calibrate --checkpoint run` makes one"
    assert f"--abstain calibrated: {hint}" in refused(capsys, *run, "--abstain", "calibrated")
    assert f"--thresholds: {hint}" in refused(capsys, *run, "--thresholds")
    calibrated()
    error = refused(capsys, *run, "--thresholds")
    assert (
        "--thresholds: the calibration of run has none; `ltfast calibrate --checkpoint run --class-precision" in error
    )
    error = refused(capsys, *run, "--thresholds", "--no-calibration")
    assert "--thresholds: expected none with --no-calibration" in error
    error = refused(capsys, *run, "--abstain", "calibrated", "--prior", "uniform")
    assert "--prior: expected none with --abstain calibrated" in error


def test_a_run_without_validation_images(here, capsys):
    error = refused(capsys, "calibrate", "--checkpoint", "none")
    assert (
        "the run none has no validation images; train with --validation 0.1, or name other images with --data" in error
    )
    assert not Path("none/calibration.json").exists()


def test_changed_validation_images(here, capsys, monkeypatch):
    from ltfast.data import ArrayDataset
    from ltfast.runs import own_data

    def changed(*args, **options):
        bundle = load_data(*args, **options)
        images = bundle.validation
        object.__setattr__(bundle, "validation", ArrayDataset(images.images + 1, images.labels, images.class_names))
        return bundle

    monkeypatch.setattr(own_data, "load", changed)
    error = refused(capsys, "calibrate", "--checkpoint", "run")
    assert "--data: " not in error
    assert (
        "the validation images of digits have changed since run was trained. What differs: validation images" in error
    )


def test_a_calibration_of_something_else(here, capsys):
    path = Path("run/calibration.json")
    content = calibrated("--class-precision", "0.9", "--method", "vector")
    remedy = "repeat `ltfast calibrate --checkpoint run`, or use --no-calibration"
    no, other = "is no calibration, or is damaged:", "is a calibration of"
    for message, change in (
        (f"{no} expected the name method", {"method": None}),
        (f"{no} scale: expected a list of 10, got", {"scale": [1.0]}),
        (f"{no} thresholds.classes: expected a list of 10", {"thresholds": {"target": "recall", "classes": []}}),
        (f"{no} images: expected an integer of at least 1, got 0", {"images": 0}),
        (f"{other} other classes than those of the run; {remedy}", {"class_names": list("abcdefghij")}),
        (f"{other} another state of the run; {remedy}", {"checkpoint": "0"}),
        ("is a calibration for --aggregate average, and None is used", {"aggregate": "average"}),
    ):
        new = {name: value for name, value in {**content, **change}.items() if value is not None or name == "aggregate"}
        path.write_text(json.dumps(new))
        for command in (["predict", "images"], ["eval"]):
            assert f"run/calibration.json {message}" in refused(capsys, *command, "--checkpoint", "run")
    path.write_text("{")
    assert "run/calibration.json is no calibration, or is damaged" in refused(capsys, "eval", "--checkpoint", "run")
    assert main(["eval", "--checkpoint", "run", "--no-calibration"]) == 0


def test_bad_arguments(here, capsys):
    run = ["calibrate", "--checkpoint", "run"]
    for words, message in (
        (["calibrate"], "required: --checkpoint"),
        (["calibrate", "--checkpoint", "nowhere"], "--checkpoint: there is no nowhere"),
        ([*run, "--method", "platt"], "--method: expected one of temperature, vector, got 'platt'"),
        ([*run, "--abstain-accuracy", "0"], "--abstain-accuracy: expected a number above 0 and up to 1, got 0"),
        ([*run, "--class-precision", "2"], "--class-precision: expected a number above 0 and up to 1, got 2"),
        ([*run, "--class-precision", "0.9", "--class-recall", "0.9"], "--class-recall: expected none with --class-pre"),
        ([*run, "--columns", "path=x"], "--columns: expected none without --data"),
        ([*run, "--data", "nonsense"], "--data: 'nonsense' is unknown"),
        ([*run, "--aggregate", "average"], "--aggregate: expected none, since method 'ce' has no sub-models"),
        ([*run, "--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
    ):
        assert message in refused(capsys, *words)
    assert not Path("run/calibration.json").exists()
