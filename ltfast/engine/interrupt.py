"""Ctrl-C, and the signal that clusters send before they kill a job, take effect at the end of a step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def graceful_interrupt(alone: bool) -> Iterator[Interrupt]:
    """Turn the first SIGINT or SIGTERM into a request to stop.

    Args:
        alone: whether the run has one process. A second signal then stops it at once. One of several processes
            receives each signal twice, directly and from its launcher; all of them stop together after the first.
    """
    interrupt = Interrupt()

    def ask(number: int, frame: FrameType | None) -> None:
        if interrupt.asked and alone:
            raise KeyboardInterrupt
        interrupt.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
