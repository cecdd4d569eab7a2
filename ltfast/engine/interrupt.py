"""Ctrl-C, taken at the end of a step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def graceful_interrupt(enabled: bool) -> Iterator[Interrupt]:
    """Turn the first SIGINT or SIGTERM (what a cluster sends before it kills) into a request to stop.

    A second one stops at once.
    """
    interrupt = Interrupt()
    if not enabled:
        yield interrupt
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
