"""The position of a run: stage, epoch and step."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Position:
    """A place in a run; everything before it is done."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    """Optimiser steps done in this epoch."""

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}"

    def global_step(self, epochs: Sequence[int], steps_per_epoch: Sequence[int]) -> int:
        """The number of optimiser steps done in the whole run.

        Args:
            epochs: the epochs of each stage; of those before this position, the epochs that they were trained.
            steps_per_epoch: optimiser steps per epoch of each stage.
        """
        before = zip(epochs[: self.stage], steps_per_epoch, strict=False)
        done = sum(number * steps for number, steps in before)
        if self.stage < len(epochs):
            done += self.epoch * steps_per_epoch[self.stage] + self.step
        return done
