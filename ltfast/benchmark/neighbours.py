"""Notices when other processes use the cores, so that a measured time is not that of the machine alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

MUCH = 0.1  # of the cores; the services of a quiet system need less
_TICKS = 0.05  # seconds; in less time the system's counters, in steps of 10 ms, say nothing


class Neighbours:
    """The use of the cores by other processes during an interval, which starts now and ends with `stop`.

    Attributes:
        share: CPU time of others as a fraction of all time of the cores, from 0 to 1; None if the interval is too short
            or the system does not tell.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._before = _times()

    def stop(self) -> None:
        total, busy, own = (after - before for before, after in zip(self._before, _times(), strict=True))
        self.share = None if total < _TICKS else min(max((busy - own) / total, 0.0), 1.0)


@contextmanager
def neighbours() -> Iterator[Neighbours]:
    """Watch the other processes during a block."""
    found = Neighbours()
    yield found
    found.stop()


def busy_now(seconds: float = 0.2) -> bool:
    """Whether other processes use the cores while this one waits."""
    with neighbours() as found:
        time.sleep(seconds)
    return is_much(found.share)


def is_much(share: float | None) -> bool:
    """Whether a share of the cores is so large that times suffer."""
    return share is not None and share > MUCH


def _times() -> tuple[float, float, float]:
    """CPU seconds so far, of the cores that this process may use: all, those in which they were busy, and the own ones
    of this process and its children. Zeros if the system does not tell."""
    try:
        cores = psutil.cpu_times(percpu=True)
        process = psutil.Process()
        if hasattr(process, "cpu_affinity"):
            cores = [cores[i] for i in process.cpu_affinity()]
        family = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    except (OSError, IndexError, psutil.Error):
        return 0.0, 0.0, 0.0
    # the time of virtual machines is part of `user` already
    total = sum(getattr(core, name) for core in cores for name in core._fields if not name.startswith("guest"))
    idle = sum(getattr(core, name, 0.0) for core in cores for name in ("idle", "iowait"))
    return total, total - idle, sum(one.user + one.system for one in family)
