"""TensorBoard's events of a run."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

# Windows has no O_NOFOLLOW, and without O_BINARY changes line ends
_APPEND = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Events:
    """A file of events, which a run can do without: if it cannot be written, this is said once, and no more is.

    The file is a new one, and no link is followed to it. Every value is in it when `add` returns. (TensorBoard's own
    writer leaves it to a thread, which would show a traceback of its own when the disk is full, and lose two minutes'
    values when the run is killed.)

    Args:
        out: the run's folder.
        purge_step: what an earlier file of this folder has of this step and later counts no more; None leaves all.
        say: is given the message.
    """

    def __init__(self, out: Path, *, purge_step: int | None, say: Callable[[str], None]) -> None:
        now = time.time()
        self.path = out / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self.say = say
        self.failed = False
        self._write(Event(wall_time=now, file_version="brain.Event:2"), os.O_CREAT | os.O_EXCL)
        if purge_step is not None:
            self._write(Event(wall_time=now, step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, name: str, value: float, step: int) -> None:
        """A scalar at an optimiser step of the run."""
        self._write(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def _write(self, event: Any, flags: int = 0) -> None:
        if self.failed:
            return
        try:
            with os.fdopen(os.open(self.path, _APPEND | flags, 0o666), "ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            self.failed = True
            self.say(f"TensorBoard's events cannot be written any more: {error}; the run goes on without them")
