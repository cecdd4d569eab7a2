"""Estimates the time that a stage still takes, from the steps that it has made."""

import time
from collections.abc import Callable

from ltfast.progress import in_words

_WARM_UP = 5  # steps that are not measured: the first ones compile kernels and start processes
_SECONDS = 5.0  # measured before the estimate
_STEPS = 10


class Estimate:
    """Measures the steps of a stage, and prints one line as soon as enough of them are measured, unless little is left.

    Args:
        say: prints a line.
        clock: gives the time in seconds.
    """

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.clock = say, clock
        self.due = False

    def begin(self, stage: str, steps: int) -> None:
        """Start to measure a stage that has so many optimiser steps left."""
        self.stage, self.left = stage, steps
        self.made, self.seconds, self.due = -_WARM_UP, 0.0, True
        self.last: float | None = None

    def step(self) -> None:
        """Count an optimiser step."""
        self.left -= 1
        now = self.clock()
        if self.last is not None:
            self.made += 1
            self.seconds += now - self.last if self.made > 0 else 0.0
        self.last = now
        left = self.seconds_left
        if not self.due or left is None or self.made < _STEPS or self.seconds < _SECONDS:
            return
        self.due = False
        if left >= 2 * _SECONDS:
            self.say(
                f"{self.stage}: about {in_words(left)} for the {self.left:,} steps that are left, at "
                f"{self.seconds / self.made:.2g} s a step, without evaluations and checkpoints"
            )

    @property
    def seconds_left(self) -> float | None:
        """The time for the steps that are left, in seconds; None before any step was measured."""
        return self.left * self.seconds / self.made if self.made > 0 else None

    def pause(self) -> None:
        """Do not count the time until the next step ends, as at the start of an epoch."""
        self.last = None
