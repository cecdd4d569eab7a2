"""Ctrl-C, and what clusters send before they kill, taken at the end of a step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether a stop was asked for, of this process."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def graceful_interrupt(alone: bool) -> Iterator[Interrupt]:
    """Turn the first SIGINT or SIGTERM into a request to stop.

    A second one stops at once, if the process is alone. One of several gets each signal twice, from its launcher and
    with it: they all stop together at the first.
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
