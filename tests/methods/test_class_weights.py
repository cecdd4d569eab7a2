import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from ltfast.cli import main
from ltfast.engine import RunSettings
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.errors import InputError, SettingError
from ltfast.methods import METHODS, BuildContext, settings_of
from ltfast.methods.class_weights import class_weights, read_class_weights
from methods.conftest import tiny_bundle

COUNTS = [12, 6, 2]
NAMES = ["cat", "dog, big", "emu"]


def build(method, fused="off", **values):
    small = {"ce": {}, "do": {"group_minima": (10, 5)}, "dscl": {"queue_size": 8, "feature_dim": 8}}
    small["livt"] = {"pretrain_epochs": 0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    small["proco"] = {"feature_dim": 8, "hidden_dim": 8}
    backbone = "vit_digits" if method in ("lift", "livt", "lpt") else "digits_convnet"
    values = {"batch_size": 4, "backbone": backbone, **small.get(method, {}), **values}
    torch.manual_seed(0)
    run = RunSettings(fused_classifier=fused)
    return METHODS[method].build(settings_of(method, values), tiny_bundle(COUNTS), BuildContext(run))


def losses(method, **values):
    """The losses of the classifiers."""
    found = []
    for stage in build(method, **values).stages:
        for name in ("classifier_loss", "loss", "balanced", "instance"):
            if hasattr(stage, name):
                found.append(getattr(stage, name))  # noqa: PERF401
    return found[:1] if method == "proco" else found


def test_balanced_is_scikit_learn_s():
    labels = np.repeat(np.arange(3), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    torch.testing.assert_close(class_weights("balanced", COUNTS), torch.from_numpy(expected))
    assert class_weights(None, COUNTS) is None


@pytest.mark.parametrize("counts", [COUNTS, [5000, 1, 300, 20]])
def test_effective_is_of_the_effective_number(counts):
    weights = class_weights("effective", counts)
    inverse = torch.tensor([(1 - 0.9999) / (1 - 0.9999**n) for n in counts], dtype=torch.float64)
    torch.testing.assert_close(weights, inverse / inverse.sum() * len(counts))


@pytest.mark.parametrize("weights", ["other", (1.0, 2.0)])
def test_weights_that_are_not_one_for_each_class(weights):
    with pytest.raises(SettingError, match="class_weights: expected balanced, effective or 3 numbers, one per class"):
        class_weights(weights, COUNTS)


@pytest.mark.parametrize(
    "text", ["1\n2.5\n3e1\n", 'emu,30\ncat,1\n"dog, big",2.5\n', "class;weight\ncat;1\ndog, big;2.5\nemu;30\n"]
)
def test_files_in_order_or_by_name(text, tmp_path):
    file = tmp_path / "weights.txt"
    file.write_text(text)
    assert read_class_weights(file, NAMES) == (1.0, 2.5, 30.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", "weights.txt: expected 3 lines, one for each class, got 2"),
        ("", "weights.txt: expected 3 lines, one for each class, got 0"),
        ("1\n0\n2\n", "weights.txt:2: expected a weight over 0, got '0'"),
        ("1\ninf\n2\n", "weights.txt:2: expected a weight over 0, got 'inf'"),
        ("1\nmany\n2\n", "weights.txt:2: expected a weight over 0, got 'many'"),
        ("cat,1\ncow,2\n", r"weights.txt:2: expected each class once \(cat, dog, big, emu\), got 'cow'"),
        ("cat,1\ncat,2\n", r"weights.txt:2: expected each class once \(cat, dog, big, emu\), got 'cat'"),
        ("cat,1\nemu\n", "weights.txt:2: expected name,weight, got 1 values"),
        ("cat,1\nemu,2\n", "weights.txt: expected a weight for each class, got none for dog, big"),
    ],
)
def test_files_that_are_no_weights(text, message, tmp_path):
    file = tmp_path / "weights.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_class_weights(file, NAMES)
    with pytest.raises(InputError, match="class_weights: expected balanced, effective, none or a text file"):
        read_class_weights(tmp_path / "balnced", NAMES)


TAKES_BOTH = [
    ("ce", "cross_entropy"),
    ("ce", "logit_adjusted"),
    ("ce", "agcl"),
    ("ce", "ldam"),
    ("ce", "gcl"),
    ("ce", "seesaw"),
    ("do", "compensation"),
    ("do", "cross_entropy"),
    ("dscl", None),
    ("proco", None),
]


@pytest.mark.parametrize(("method", "loss"), [*TAKES_BOTH, ("livt", "cross_entropy")])
def test_losses_that_take_weights_have_them(method, loss):
    named = {} if loss is None else {"loss": loss}
    assert all(loss.weight is None for loss in losses(method, **named))
    found = losses(method, class_weights="balanced", **named)
    assert found
    for criterion in found:
        torch.testing.assert_close(criterion.weight, class_weights("balanced", COUNTS).float())
    stage = build(method, class_weights="balanced", **named).stages[-1]
    assert stage(stage.prepare(next(stage.batches.epoch(0, 0))))[0].isfinite()


HAVE_IT = [case for case in TAKES_BOTH if case[1] not in ("agcl", "gcl")]  # these two keep weights of their terms


@pytest.mark.parametrize(("method", "loss"), [*HAVE_IT, ("ce", "balanced_bce")])
def test_losses_that_take_label_smoothing_have_it(method, loss):
    named = {} if loss is None else {"loss": loss}
    assert all(criterion.label_smoothing == 0 for criterion in losses(method, **named))
    assert all(criterion.label_smoothing == 0.2 for criterion in losses(method, label_smoothing=0.2, **named))


@pytest.mark.parametrize(("method", "loss"), [("ce", {"loss": "agcl"}), ("lpt", {})])
def test_agcl_has_its_own_label_smoothing(method, loss):
    assert all(criterion.weight_neg == pytest.approx(0.1 / 3) for criterion in losses(method, **loss))
    assert all(c.weight_neg == pytest.approx(0.3 / 3) for c in losses(method, label_smoothing=0.3, **loss))


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        (
            "ce",
            {"loss": "class_balanced", "class_weights": "balanced"},
            "class_weights: expected none with the loss class_balanced, which",
        ),
        (
            "ce",
            {"loss": "balanced_bce", "class_weights": "effective"},
            "expected none with the loss balanced_bce",
        ),
        ("livt", {"class_weights": "balanced"}, "class_weights: expected none with the loss balanced_bce"),
        ("livt", {"loss": "bce", "class_weights": "balanced"}, "class_weights: expected none with the loss bce"),
        ("lpt", {"class_weights": "balanced"}, "class_weights: expected none with the loss agcl"),
        ("ce", {"label_smoothing": 1.0}, r"label_smoothing: expected a number in \[0, 1\), or auto, got 1.0"),
        ("ce", {"class_weights": (1.0, 0.0)}, "class_weights: expected numbers over 0"),
    ],
)
def test_losses_that_take_none_are_named(method, values, message):
    with pytest.raises(SettingError, match=message):
        settings_of(method, values)


@pytest.mark.parametrize("loss", ["cross_entropy", "logit_adjusted"])
def test_weights_count_without_scores_too(loss):
    values = []
    for fused in ("on", "off"):
        stage = build("ce", fused, loss=loss, class_weights="balanced", label_smoothing=0.1).stages[0]
        values.append(stage(next(stage.batches.epoch(0, 0)))[0])
    torch.testing.assert_close(*values)


@pytest.mark.usefixtures("_command_line")
def test_a_run_keeps_the_weights_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("weights.txt").write_text("".join(f"{c + 1}\n" for c in range(10)))
    command = ["train", "--data", "digits", "--imbalance", "50", "--epochs", "1", "--loss", "cross_entropy"]
    command += ["--label-smoothing", "0.1", "--class-weights", "weights.txt", "--out", "run"]
    assert main(command) == 0
    settings = load_checkpoint(Path("run"))["settings"]
    assert (settings["class_weights"], settings["label_smoothing"]) == ([float(c + 1) for c in range(10)], 0.1)
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    Path("weights.txt").unlink()
    assert main(["eval", "--checkpoint", "run"]) == 0
    metrics, result = (json.loads(Path("run", name).read_text()) for name in ("metrics.json", "eval.json"))
    assert result["per_class"] == metrics["per_class"]
    capsys.readouterr()
    assert main([*command[:-2], "--out", "other"]) == 2
    expected = "--class-weights: expected balanced, effective, none or a text file with a weight for each class, "
    assert expected in capsys.readouterr().err
