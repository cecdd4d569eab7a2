import json
from io import StringIO

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn

from ltfast.engine import Predictor
from ltfast.engine.metrics import accuracies, evaluate
from ltfast.engine.plot import plot_comparison
from ltfast.engine.report import comparison, read_metrics, table, write_report
from ltfast.engine.timing import time_losses

GROUPS = {"many": [0, 1], "medium": [2, 3], "few": []}


class Fixed(Predictor):
    def predict(self, logits):
        return logits


def test_metrics_against_a_plain_computation():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(101, 5, generator=generator)
    labels = torch.randint(4, (101,), generator=generator)  # class 4 has no test image
    batches = list(zip(logits.split(17), labels.split(17), strict=True))
    groups = {**GROUPS, "few": [4]}
    result = evaluate(Fixed(), batches, groups, 5, Accelerator(cpu=True))

    right = [0] * 5
    total = [0] * 5
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total[label] += 1
        right[label] += row.index(max(row)) == label
    each = [100 * r / t for r, t in zip(right[:4], total[:4], strict=True)]
    assert result["per_class"] == pytest.approx([*each, None])
    assert result["top1"] == pytest.approx(100 * sum(right) / 101)
    assert result["many"] == pytest.approx((each[0] + each[1]) / 2)
    assert result["medium"] == pytest.approx((each[2] + each[3]) / 2)
    assert result["few"] is None
    predicted = logits.argmax(1)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert result["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    assert result["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro", zero_division=0))


def test_adapting_sees_all_views_and_no_label():
    class Adapting(Fixed):
        def adapt(self, views):
            self.seen = [[view.clone() for view in batch] for batch in views]
            assert not torch.is_grad_enabled()

        def predict(self, *views):
            assert len(self.seen) == 3
            return views[0]

    logits, labels = torch.randn(9, 4), torch.randint(4, (9,))
    predictor = Adapting()
    evaluate(predictor, list(zip(logits.split(4), labels.split(4), strict=True)), GROUPS, 4, Accelerator(cpu=True))
    assert torch.equal(torch.cat([view for (view,) in predictor.seen]), logits)


def test_groups_without_classes_or_images_are_none():
    result = accuracies([1, 0, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0], GROUPS)
    groups = {"many": 50.0, "medium": None, "few": None}
    per_class = [50.0, None, None, None]
    f1 = (100 * 2 / 3 + 0) / 2  # class 1 has no image and is predicted
    assert result == {"top1": 50.0, **groups, "balanced_accuracy": 50.0, "macro_f1": f1, "per_class": per_class}
    nothing = accuracies([0], [0], [0], {})
    assert nothing == {"top1": None, "balanced_accuracy": None, "macro_f1": None, "per_class": [None]}


def test_report_is_written_read_and_shown(tmp_path):
    report = {
        **accuracies([9, 7, 3, 0], [1, 2, 5, 3], [10, 10, 10, 0], GROUPS),
        "train_seconds": 12.0,
        "loss_ms": 0.25,
        "step_ms": 5.0,
        "step_images": 50,
        "class_counts": [500, 300, 50, 40],
        "settings": {"lr": 0.1},
    }
    write_report(tmp_path, report, ["w", "x", "y", "z"], GROUPS)
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == read_metrics(tmp_path) == report
    assert (tmp_path / "per_class.png").read_bytes().startswith(b"\x89PNG")
    shown = table({"a": report, "b": {**report, "many": 10.0}})
    columns = {column.header: list(column.cells) for column in shown.columns}
    assert columns["many"] == ["[bold]80.0[/bold]", "10.0"]
    assert columns["few"] == ["none", "none"]
    assert shown.caption == "many: 101 training images or more; few: fewer than 20; none: no such classes"
    assert columns["loss µs/image"] == ["5.00", "5.00"]
    assert columns["loss % of step"] == ["5.0", "5.0"]
    assert columns["train s"] == ["12", "12"]


def test_names_with_brackets_and_losses_without_a_time_are_shown():
    report = {**accuracies([9, 7, 3, 0], [1, 2, 5, 3], [10, 10, 10, 0], GROUPS), "loss_ms": None}
    console = Console(file=StringIO(), width=80)
    console.print(table({"run[x]": report}, title="on [y]"))
    shown = console.file.getvalue()
    assert "run[x]" in shown
    assert "on [y]" in shown
    assert table({"a": report}).columns[-1].header == "all"


def test_a_run_of_an_older_version_has_no_time_of_its_step():
    report = {**accuracies([9, 7, 3, 0], [1, 2, 5, 3], [10, 10, 10, 0], GROUPS), "loss_ms": 1.0, "train_seconds": 2.0}
    columns = {column.header: list(column.cells) for column in table({"a": report}).columns}
    assert "loss µs/image" not in columns
    assert columns["train s"] == ["2"]


def runs(few, counts=(500, 300, 50, 4)):
    return {
        name: {"class_counts": list(counts), "few": value, "top1": 70.0 + i, "many": 1.0, "medium": 2.0,
               "per_class": [90.0, 80.0, None, value]}
        for i, (name, value) in enumerate(few.items())
    }  # fmt: skip


def test_the_comparison_says_what_the_best_run_gains_on_rare_classes():
    assert comparison(runs({"plain": 50.0, "a": 61.25, "b": 55.0})) == (
        "Trained on 4 classes with 500 to 4 images each, a recognises 61.2 % of the test images of the rare classes "
        "(fewer than 20 training images), plain 50.0 %: 11.2 percentage points more. "
        "Of all test images, it is 71.0 % and 70.0 %."
    )
    assert "plain 50.0 %: 10.0 percentage points fewer." in comparison(runs({"plain": 50.0, "a": 40.0}))
    assert "plain 50.0 %: as many." in comparison(runs({"plain": 50.0, "a": 50.01}))


def test_what_cannot_be_compared_is_not():
    assert comparison(runs({"plain": 50.0})) is None
    assert comparison(runs({"plain": 50.0, "a": None})) is None
    assert comparison(runs({"plain": 50.0}) | runs({"a": 60.0}, counts=(500, 300, 50, 3))) is None


@pytest.mark.parametrize("classes", [4, 40])
def test_runs_are_drawn_side_by_side(classes, tmp_path):
    rows = runs({"/run/$x^{$": 50.0, "b": 60.0})
    for row in rows.values():
        row["class_counts"] = list(range(classes, 0, -1))
        row["per_class"] = [None, *[50.0] * (classes - 1)]
    assert plot_comparison(tmp_path / "c.png", rows)
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_classes_without_training_images_are_drawn(tmp_path):
    report = {**accuracies([9, 7, 3, 0], [1, 2, 5, 3], [10, 10, 10, 0], GROUPS), "class_counts": [500, 3, 0, 0]}
    write_report(tmp_path, report, ["w", "x", "y", "z"], GROUPS)
    assert (tmp_path / "per_class.png").read_bytes().startswith(b"\x89PNG")


def test_unfinished_or_broken_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the run is not finished"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match="is no metrics file"):
        read_metrics(tmp_path)


class Unprepared(nn.Module):
    def prepare(self, batch):
        return batch


def test_loss_time_is_the_losses_alone():
    """A slow network in front of the loss, or a slow second call of it, must not and must count."""
    import time

    class SlowLoss(nn.Module):
        def forward(self, x, *, target):
            time.sleep(0.004)
            return nn.functional.mse_loss(x, target)

    class Slow(Unprepared):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.loss = SlowLoss()

        def losses(self):
            return [self.loss]

        def forward(self, batch):
            time.sleep(0.2)
            x = batch * self.weight
            return self.loss(x, target=batch) + self.loss(2 * x, target=batch), {}

    stage = Slow()
    times = time_losses(stage, torch.randn(4, 3), Accelerator(cpu=True))
    assert 8 <= times.loss_ms < 100
    assert times.step_ms > 8
    assert times.step_images == 4
    assert stage.weight.grad is None


class Timed(Unprepared):
    """A stage with a loss that is called as the test wants."""

    def __init__(self, call, loss=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.call, self.loss = call, loss or nn.MSELoss()

    def losses(self):
        return [self.loss]

    def forward(self, batch):
        return self.call(self.loss, batch * self.weight, batch), {}


class First(nn.Module):
    def forward(self, x, unused):
        return x.square().mean()


@pytest.mark.parametrize(
    "stage",
    [
        Timed(lambda loss, x, batch: loss(x, 2 * x), First()),  # an input that the loss does not use
        Timed(lambda loss, x, batch: loss(x, batch) + loss(x.detach(), batch)),  # one call has no gradient
        Timed(lambda loss, x, batch: loss(x, batch).mean(), nn.MSELoss(reduction="none")),
        Timed(lambda loss, x, batch: loss(batch).sum(), nn.Linear(3, 1)),  # parameters of its own alone
    ],
    ids=["unused", "detached", "unreduced", "parameters"],
)
def test_losses_are_timed_in_what_has_a_gradient(stage):
    assert time_losses(stage, torch.randn(4, 3), Accelerator(cpu=True)).loss_ms > 0


def test_nothing_to_time_is_none():
    stage = Timed(lambda loss, x, batch: x.sum() + loss(x.detach(), batch))
    assert time_losses(stage, torch.randn(4, 3), Accelerator(cpu=True)) is None
    stage = Timed(lambda loss, x, batch: loss(x.detach(), batch))  # nor is the step to be differentiated
    assert time_losses(stage, torch.randn(4, 3), Accelerator(cpu=True)) is None
    stage.losses = list
    assert time_losses(stage, torch.randn(4, 3), Accelerator(cpu=True)) is None


def test_losses_are_timed_as_they_train():
    """In evaluation mode the asymmetric loss draws no noise, which is half of its time."""
    modes = set()

    def call(loss, x, batch):
        modes.add(loss.training)
        return loss(x, batch)

    class Loss(nn.MSELoss):
        def forward(self, x, target):
            modes.add(self.training)
            return super().forward(x, target)

    time_losses(Timed(call, Loss()).eval(), torch.randn(4, 3), Accelerator(cpu=True))
    assert modes == {True}


def test_folds_have_a_row_with_their_mean():
    def fold(number, top1, **settings):
        own = {"lr": 0.1, "folds": 3, "fold": number, "seed": 0, "class_counts": [4, number], **settings}
        row = {"top1": top1, "many": 90.0, "medium": None, "few": 10.0 * number}
        return {**row, "class_counts": own["class_counts"], "settings": own}

    def cells(rows):
        return [list(column.cells) for column in table(rows).columns]

    every = cells({"a": fold(1, 50.0), "b": fold(2, 60.0), "c": fold(3, 70.0)})
    assert [column[3:] for column in every] == [
        ["mean of 3 folds"],
        ["90.0 ± 0.0"],
        ["-"],
        ["20.0 ± 10.0"],
        ["60.0 ± 10.0"],
    ]
    names, *_ = cells({"a": fold(1, 50.0), "b": fold(3, 60.0), "c": fold(3, 70.0, seed=1)})
    assert names[3:] == ["mean of 3 runs in 2 of 3 folds"]
    other = {"d": fold(1, 50.0, lr=0.2), "e": fold(2, 52.0, lr=0.2), "f": fold(1, 50.0, lr=0.3)}
    names, *_ = cells({"a": fold(1, 50.0), "b": fold(2, 60.0), **other})
    assert names[5:] == ["mean of 2 of 3 folds (a, ...)", "mean of 2 of 3 folds (d, ...)"]
    names, *_ = cells({"a": fold(1, 50.0), "b": fold(1, 50.0, folds=None)})
    assert len(names) == 2
