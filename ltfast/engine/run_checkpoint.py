"""Saves and loads the state of a run."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ltfast.engine.average import WeightAverage
from ltfast.engine.checkpoint import (
    CHECKPOINT,
    WEIGHTS,
    CheckpointError,
    check_content,
    check_position,
    load_checkpoint,
    load_optimizer,
    load_weights,
    save_adapted,
    save_checkpoint,
)
from ltfast.engine.console import Console
from ltfast.engine.finite import check_parameters, check_state
from ltfast.engine.identity import check_same_data, check_same_settings
from ltfast.engine.position import Position
from ltfast.engine.schema import like
from ltfast.engine.selection import Selection
from ltfast.engine.stage import Plan


class RunCheckpoint:
    """The checkpoint of a run.

    Args:
        out: the run's folder.
        plan: has the stages.
        settings, facts: see `ltfast.engine.loop.train`; a checkpoint with other ones is refused.
        accelerator: has the processes, of which the first one writes, and the scaler of fp16.
        check_folder: called before anything is written; raises if the folder no longer belongs to this run.
        selection: the choice of the epochs, which is part of the checkpoint of a run with validation images.
    """

    def __init__(
        self,
        out: Path,
        plan: Plan,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        accelerator: Accelerator,
        check_folder: Callable[[], None],
        selection: Selection,
    ) -> None:
        self.path = out / CHECKPOINT
        self.plan, self.settings, self.facts = plan, settings, facts
        self.accelerator, self.check_folder, self.selection = accelerator, check_folder, selection
        self.modules = nn.ModuleList(plan.stages)

    def load(self, steps_per_epoch: Sequence[int], console: Console) -> dict[str, Any] | None:
        """Load the weights into the stages, and the choice of the epochs.

        Args:
            steps_per_epoch: optimiser steps per epoch of each stage.
            console: prints a line if the checkpoint has no digests of the data.

        Returns:
            The content of the checkpoint; None if there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint is damaged or belongs to another run.
        """
        if not os.path.lexists(self.path):
            return None
        saved = load_checkpoint(self.path)
        finished = saved["position"]["stage"] == len(self.plan.stages)
        onward = self.plan.stages[-1].onward if finished else None
        check_same_settings(self.path, saved["settings"], self.settings, onward=onward)
        check_same_data(self.path, saved["facts"], self.facts)
        if "digests" in self.facts and "digests" not in saved["facts"]:
            console.print(f"{self.path} does not say what its data were (an older ltfast wrote it): not compared")
        check_position(self.path, saved["position"], self.plan, steps_per_epoch)
        load_weights(self.path, self.plan, saved["model"])
        if self.plan.validation is not None:
            self.selection.load_state_dict(self.path, saved["position"], saved.get("selection"))
        starts = saved["position"]["epoch"] == saved["position"]["step"] == 0
        if (saved["optimizer"] is None) != starts:
            expected = "expected a state inside of a stage, and none where it starts"
            raise CheckpointError(f"checkpoint {self.path}: optimizer: {expected}, got the other")
        return saved

    def load_optimizer(self, saved: Mapping[str, Any], optimizer: Any) -> None:
        """Load the state of Accelerate's optimiser, and of the scaler of fp16, from what `load` returned.

        Raises:
            CheckpointError: the state does not belong to this optimiser and these parameters.
        """
        load_optimizer(self.path, optimizer.optimizer, saved["optimizer"])
        scaler = self.accelerator.scaler
        if scaler is not None and saved["scaler"]:
            check_content(self.path, like(scaler.state_dict()), saved["scaler"], "scaler")
            scaler.load_state_dict(saved["scaler"])

    def save(
        self,
        position: Position,
        optimizer: Any | None,
        *,
        loss_sum: float,
        train_seconds: float,
        average: WeightAverage | None = None,
    ) -> None:
        """Write the checkpoint. All processes must call it. A finished run with a frozen backbone also writes the
        weights without the backbone to a file of their own.

        Args:
            position: the position of the run.
            optimizer: Accelerate's, inside of a stage; None at the start of a stage and in a finished run.
            loss_sum: the sum of the losses of this epoch's steps.
            train_seconds: the training time of the run.
            average: the average of the weights, inside of a stage.

        Raises:
            TrainingError: a weight is not finite; the last checkpoint is kept.
            FolderError: the folder no longer belongs to this run.
            OSError: a file cannot be written; the last checkpoint is complete.
        """
        check_parameters(self.modules.parameters(), self.path)
        for stage in self.plan.stages:
            stage.before_save()
        if not self.accelerator.is_main_process:
            return
        self.check_folder()
        weights = self.modules.state_dict()
        check_state(weights, self.path)
        scaler = self.accelerator.scaler
        adapted = self.plan.adapted if position.stage == len(self.plan.stages) else None
        left_out = set() if adapted is None else adapted.left_out(self.modules)
        if adapted is not None:
            save_adapted(self.path.with_name(WEIGHTS), adapted)
        save_checkpoint(
            self.path,
            {
                "settings": self.settings,
                "facts": dict(self.facts),
                "position": vars(position),
                "loss_sum": loss_sum,
                "train_seconds": train_seconds,
                "model": {name: value for name, value in weights.items() if name not in left_out},
                "whole": not left_out,
                "optimizer": optimizer.state_dict() if optimizer is not None else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
                **({} if average is None else {"average": average.state_dict()}),
                **({} if self.plan.validation is None else {"selection": self.selection.state_dict()}),
            },
        )
