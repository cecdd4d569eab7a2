"""The choice of a stage's epoch on the validation images, and what a killed run knows of it."""

import json
from dataclasses import replace

import pytest
import torch
import toy
from torch import nn

from fixtures import undrawn_pictures  # noqa: F401
from ltfast.engine import Optimisation, RunSettings
from ltfast.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ltfast.engine.selection import Selection, check_validation
from ltfast.errors import SettingError


class Killed(BaseException):
    """The process ends here; the files stay as they are."""


def validated(epochs=6, **options):
    """A plan whose validation images have random labels, so that the accuracy goes up and down."""
    plan = toy.toy_plan(epochs=epochs, **options)
    generator = torch.Generator().manual_seed(3)
    points, labels = torch.randn(61, 5, generator=generator), torch.randint(3, (61,), generator=generator)
    return replace(plan, validation=list(zip(points.split(20), labels.split(20), strict=True)))


def killed_after(number):
    left = [number]

    def on_step(stage):
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return on_step


def observed(monkeypatch):
    """Every choice: the stage, the epoch, the metrics and the weights that were evaluated."""
    seen = []
    end_epoch = Selection.end_epoch

    def watched(self, stage, epoch, metrics):
        state = {name: value.clone() for name, value in stage.state_dict().items()}
        seen.append((stage.name, epoch, metrics, state))
        return end_epoch(self, stage, epoch, metrics)

    monkeypatch.setattr(Selection, "end_epoch", watched)
    return seen


@pytest.mark.parametrize("metric", ["balanced_accuracy", "top1", "few"])
def test_a_stage_ends_with_its_best_epoch(tmp_path, monkeypatch, metric, capsys):
    seen = observed(monkeypatch)
    metrics = toy.toy_train(tmp_path, validated(), keep="best", metric=metric)
    model = load_checkpoint(tmp_path)["model"]
    for number, name in enumerate(("first", "second")):
        rows = [row for row in seen if row[0] == name]
        values = [row[2][metric] for row in rows]
        best = values.index(max(values))  # the earliest
        assert metrics["epochs"][name] == {"trained": 6, "kept": best + 1}
        for key, value in rows[best][3].items():
            assert torch.equal(model[f"{number}.{key}"], value), key
    assert metrics["validation"] == rows[best][2]
    assert metrics["epochs"]["first"]["kept"] < 6  # else nothing was shown
    assert json.loads((tmp_path / "metrics.json").read_text())["validation"] == metrics["validation"]
    out = capsys.readouterr().out
    assert f"first ends after epoch 6 and keeps epoch {metrics['epochs']['first']['kept']}" in out
    assert "  validation:  top1 " in out


def test_the_second_stage_starts_from_the_kept_weights(tmp_path):
    plan = validated()
    started = []
    start = plan.stages[1].start

    def watched():
        started.append({name: value.clone() for name, value in plan.stages[1].encoder.state_dict().items()})
        start()

    plan.stages[1].start = watched
    toy.toy_train(tmp_path, plan, keep="best")
    model = load_checkpoint(tmp_path)["model"]
    assert all(torch.equal(model[f"0.encoder.{name}"], value) for name, value in started[0].items())


def test_patience_ends_a_stage(tmp_path, monkeypatch):
    seen = observed(monkeypatch)
    metrics = toy.toy_train(tmp_path / "patient", validated(epochs=12), patience=2, keep="best")
    for name in ("first", "second"):
        values = [row[2]["balanced_accuracy"] for row in seen if row[0] == name]
        kept, trained = metrics["epochs"][name]["kept"], metrics["epochs"][name]["trained"]
        assert trained == len(values) == min(kept + 2, 12)
        assert max(values[kept:], default=0) <= values[kept - 1]
    assert metrics["epochs"]["first"]["trained"] < 12
    last = toy.toy_train(tmp_path / "last", validated(epochs=12), patience=2)["epochs"]
    assert last["first"] == dict.fromkeys(("trained", "kept"), metrics["epochs"]["first"]["trained"])


def test_stages_that_cannot_choose_run_to_their_end(tmp_path):
    plan = validated(epochs=8)
    plan.stages[0].selects = False
    plan.stages[1].evaluated = False
    plan = replace(plan, final=plan.stages[1])
    metrics = toy.toy_train(tmp_path, plan, patience=1, keep="best")
    assert metrics["epochs"] == {"first": {"trained": 8, "kept": 8}}
    assert load_checkpoint(tmp_path)["selection"]["epochs"] == metrics["epochs"]


@pytest.mark.parametrize(
    "settings",
    [
        {"keep": "best", "patience": 3},
        *(pytest.param(some, marks=pytest.mark.slow) for some in ({"keep": "best"}, {"patience": 3}, {})),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, settings):
    whole = toy.toy_train(tmp_path / "whole", validated(), **settings)
    between = False  # whether it was killed between its best and its last epoch
    for number, minutes in ((13, 0), (17, 10), (25, 0), (27, 10)):  # a checkpoint at each step, or at each epoch
        with pytest.raises(Killed):
            toy.toy_train(
                tmp_path / "cut", validated(on_step=killed_after(number)), **settings, checkpoint_minutes=minutes
            )
        saved = load_checkpoint(tmp_path / "cut")
        best = saved["selection"]["best"]
        between |= best is not None and best["epoch"] < saved["position"]["epoch"]
    assert between == bool(settings)
    cut = toy.toy_train(tmp_path / "cut", validated(), **settings)
    assert toy.digest(tmp_path / "cut") == toy.digest(tmp_path / "whole")
    names = ("top1", "per_class", "validation", "epochs")
    assert [cut[name] for name in names] == [whole[name] for name in names]


def test_a_killed_run_that_had_nothing_to_do_but_report(tmp_path):
    whole = toy.toy_train(tmp_path, validated(), keep="best")
    (tmp_path / "metrics.json").unlink()
    again = toy.toy_train(tmp_path, validated(), keep="best")
    assert {**again, "loss_ms": 0, "step_ms": 0} == {**whole, "loss_ms": 0, "step_ms": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": {"epoch": 9, "value": 50.0}}, "selection.best.epoch: expected an integer from 1 to 1, got 9"),
        ({"best": {"epoch": 1, "value": 500.0}}, "selection.best.value: expected a finite number from 0 to 100"),
        ({"best": None}, "selection.best: expected names and values, got None"),
        ({"weights": None}, "selection.weights: expected names and values, got None"),
        ({"weights": {"turns": torch.zeros(2)}}, "selection.weights"),
        (None, "selection: expected names and values, got None"),
    ],
)
def test_a_choice_in_a_checkpoint_is_checked(tmp_path, change, message):
    with pytest.raises(Killed):
        toy.toy_train(tmp_path, validated(on_step=killed_after(13)), keep="best")
    saved = load_checkpoint(tmp_path)
    if change is None:
        del saved["selection"]
    else:
        saved["selection"] |= change
    save_checkpoint(tmp_path / "checkpoint.pt", {name: value for name, value in saved.items() if name != "format"})
    with pytest.raises(CheckpointError, match=message):
        toy.toy_train(tmp_path, validated(), keep="best")


def test_what_needs_validation_images_is_refused_without(tmp_path):
    for settings in ({"keep": "best"}, {"patience": 2}, {"metric": "top1"}):
        (name,) = settings
        with pytest.raises(SettingError, match=f"^{name}: expected .* with no validation images; give --validation"):
            toy.toy_train(tmp_path, **settings)
    message = r"^metric: expected a metric of classes with validation images \(none of the few classes has any\)"
    with pytest.raises(SettingError, match=message):
        check_validation(RunSettings(metric="few"), [3, 2, 0], toy.GROUPS)
    check_validation(RunSettings(metric="medium", keep="best"), [3, 2, 0], toy.GROUPS)


@pytest.mark.parametrize(("name", "value"), [("keep", "first"), ("metric", "loss"), ("patience", 0)])
def test_settings_out_of_range(name, value):
    with pytest.raises(SettingError, match=f"^{name}: expected"):
        RunSettings(**{name: value})


def test_equal_epochs_keep_the_earliest():
    stage = toy.ToyStage("only", nn.Linear(5, 8))
    stage.optimisation = Optimisation(epochs=4)
    selection = Selection(RunSettings(keep="best"), replace(toy.toy_plan(), validation=[]))
    ends = []
    for epoch, value in enumerate((10.0, 30.0, 30.0, 20.0), 1):
        nn.init.constant_(stage.classifier.bias, epoch)
        ends.append(selection.end_epoch(stage, epoch, {"balanced_accuracy": value}))
    assert ends == [False, False, False, True]
    assert selection.epochs == {"only": {"trained": 4, "kept": 2}}
    assert stage.classifier.bias.tolist() == [2.0] * 3
