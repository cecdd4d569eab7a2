"""The choice of a stage's epoch by its metrics on the validation images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ltfast.engine.checkpoint import check_content
from ltfast.engine.schema import integer, like, one_of, record
from ltfast.engine.settings import DEFAULT_METRIC, RunSettings, check
from ltfast.engine.stage import Plan, Stage


def check_validation(
    run: RunSettings, counts: Sequence[int] | None, groups: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Check that the settings of the choice have the validation images that they need.

    Args:
        run: the settings.
        counts: the number of validation images of each class, length C; None if there are no validation images.
        groups: class indices of each group; None skips the check of a group's metric.

    Raises:
        SettingError: there are no validation images, or none of the group of classes that `metric` names.
    """
    if counts is None:
        none = "with no validation images; give --validation 0.1, or a source that has them"
        check(run.keep == "last", "keep", f"last {none}", run.keep)
        check(run.patience is None, "patience", f"none {none}", run.patience)
        check(run.metric == DEFAULT_METRIC, "metric", f"{DEFAULT_METRIC} (the default) {none}", run.metric)
    elif groups is not None and run.metric in groups:
        known = any(counts[c] for c in groups[run.metric])
        expected = f"a metric of classes with validation images (none of the {run.metric} classes has any)"
        check(known, "metric", expected, run.metric)


class Selection:
    """Decides after each epoch of an evaluated stage whether the stage ends, and which epoch's weights it ends with.

    Several processes decide the same, because their metrics and weights are equal.

    Args:
        run: has `keep`, `metric` and `patience`.
        plan: has the stages.

    Raises:
        SettingError: the settings need validation images, and the plan has none.

    Attributes:
        epochs: for each evaluated stage that has ended, by name: the number of epochs `trained`, and the one `kept`,
            from 1.
        weights: the state dict of the current stage after its best epoch, on the CPU, without a backbone that the plan
            adapts; None if there is no such epoch, or it is not kept.
    """

    def __init__(self, run: RunSettings, plan: Plan) -> None:
        if plan.validation is None:
            check_validation(run, None)
        self.run, self.plan = run, plan
        self.epochs: dict[str, dict[str, int]] = {}
        self.best: dict[str, Any] | None = None  # the `epoch`, from 1, and the `value` of its metric
        self.weights: dict[str, Tensor] | None = None

    @property
    def chooses(self) -> bool:
        """Whether the metrics make a difference."""
        return self.run.keep == "best" or self.run.patience is not None

    def end_epoch(self, stage: Stage, epoch: int, metrics: Mapping[str, Any]) -> bool:
        """Whether the stage ends after this epoch; then it has the weights that it keeps.

        Args:
            stage: the current stage, with the weights that were evaluated.
            epoch: the number of the epoch, from 1.
            metrics: what `evaluate` returns for the validation images.
        """
        last = epoch == stage.optimisation.epochs
        if stage.selects and self.chooses:
            value = metrics[self.run.metric]
            if self.best is None or value > self.best["value"]:
                self.best = {"epoch": epoch, "value": value}
                self.weights = self._copied(stage) if self.run.keep == "best" else None
            last = last or (self.run.patience is not None and epoch - self.best["epoch"] >= self.run.patience)
        if last:
            kept = epoch
            if self.best is not None and self.weights is not None:
                stage.load_state_dict(self.weights, strict=False)
                kept = self.best["epoch"]
            self.epochs[stage.name] = {"trained": epoch, "kept": kept}
            self.best = self.weights = None
        return last

    def _copied(self, stage: Stage) -> dict[str, Tensor]:
        stage.before_save()
        left_out = set() if self.plan.adapted is None else self.plan.adapted.left_out(stage)
        state = stage.state_dict()
        return {name: value.to("cpu", copy=True) for name, value in state.items() if name not in left_out}

    def state_dict(self) -> dict[str, Any]:
        """The state, for a checkpoint."""
        return {"epochs": self.epochs, "best": self.best, "weights": self.weights}

    def load_state_dict(self, path: Path, position: Mapping[str, int], state: Any) -> None:
        """Load what `state_dict` returned.

        Args:
            path: the checkpoint.
            position: the stage and the epoch of the run.
            state: the content of the checkpoint.

        Raises:
            CheckpointError: the state does not belong to this run and position.
        """
        ended = [stage for stage in self.plan.stages[: position["stage"]] if stage.evaluated]
        of_stage = {
            stage.name: record(dict.fromkeys(("trained", "kept"), integer(1, stage.optimisation.epochs)))
            for stage in ended
        }
        stage = self.plan.stages[position["stage"]] if position["epoch"] > 0 else None
        best = stage is not None and stage.evaluated and stage.selects and self.chooses
        example = self._copied(stage) if stage is not None and best and self.run.keep == "best" else None
        schema = record(
            {
                "epochs": record(of_stage),
                "best": record({"epoch": integer(1, position["epoch"])}) if best else one_of([None]),
                "weights": one_of([None]) if example is None else like(example),
            }
        )
        check_content(path, schema, state, "selection")
        self.epochs = {stage.name: dict(state["epochs"][stage.name]) for stage in ended}
        self.best = dict(state["best"]) if best else None
        self.weights = None if example is None else {name: state["weights"][name] for name in example}
