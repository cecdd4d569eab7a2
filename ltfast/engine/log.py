"""The log of a run: lines on the console, and TensorBoard events."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltfast.engine.console import Console
from ltfast.engine.events import Events


class Log:
    """Writes the log of a run, in its first process only.

    Args:
        first: whether this is the first process.
        check_folder: called before events are written; raises if the folder is no longer this run's.
    """

    def __init__(self, *, first: bool, check_folder: Callable[[], None]) -> None:
        self.console = Console(quiet=not first)
        self.first, self.check_folder = first, check_folder
        self.events: Events | None = None

    def start_events(self, out: Path, *, purge_step: int | None) -> None:
        """Create an event file in a run's folder; `purge_step`: see `Events`."""
        if self.first:
            self.events = Events(out, purge_step=purge_step, say=self.console.print)

    def steps(self, stage: str, window: Sequence[Mapping[str, Tensor]], lr: float, step: int) -> None:
        """Write the means of consecutive steps' values.

        Args:
            stage: its name.
            window: scalars by name, of each step.
            lr: the learning rate of the last step.
            step: the last step's number in the whole run.
        """
        if self.events:
            self.check_folder()
            for name in window[-1]:
                value = torch.stack([logged[name] for logged in window]).float().mean()
                self.events.add(f"{stage}/{name}", value.item(), step)
            self.events.add(f"{stage}/lr", lr, step)

    def epoch(
        self,
        stage: str,
        epoch: str,
        loss: float,
        metrics: Mapping[str, Any] | None,
        names: Iterable[str],
        step: int,
        *,
        validation: bool = False,
    ) -> None:
        """Print a line about an epoch, and write its accuracies.

        Args:
            stage: its name.
            epoch: the epoch and the number of epochs, in words.
            loss: the mean loss of the epoch.
            metrics: what `evaluate` returns; None if the stage is not evaluated.
            names: the metrics to print and write.
            step: the last step's number in the whole run.
            validation: whether the metrics are of the validation images; the line and the events say so.
        """
        line = f"{stage} {epoch}  loss {loss:.4f}"
        if metrics is not None:
            self.check_folder()
            line += "  validation:" if validation else ""
            for name in names:
                value = metrics[name]
                line += f"  {name} {'-' if value is None else f'{value:.1f}'}"
                if self.events and value is not None:
                    self.events.add(f"{stage}/{'validation_' if validation else ''}{name}", value, step)
        self.console.print(line)
