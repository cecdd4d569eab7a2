"""The TensorBoard events of a run."""

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
    """An event file. A run does not depend on it: if it cannot be written, one message says so, and the run goes on.

    The file is always new, and links are not followed. A value is in the file when `add` returns. (TensorBoard's own
    writer uses a thread, which would print a traceback when the disk is full, and would lose up to two minutes of
    values when the run is killed.)

    Args:
        out: the run's folder.
        purge_step: values of this step and later in earlier files of the folder are discarded; None keeps all.
        say: called with the message.
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
        """Write a scalar at an optimiser step of the run."""
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
