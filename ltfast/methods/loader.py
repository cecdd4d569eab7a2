"""A data loader that checks the resources of its worker processes before they start."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

_SHARED = Path("/dev/shm")  # on Linux, batches pass from one process to another here
_SPARE_FILES = 16  # for images, checkpoints and other files that a run opens
_SPARE_MEMORY = 2**20  # for semaphores, and the unused part of each batch's last page


class Loader(DataLoader[Any]):
    """A `DataLoader` of batches of tensors. It raises an OSError with a remedy if its worker processes would fail in
    the middle of a run, because there is too little shared memory or the limit of open files is too low."""

    _checked = False

    def __iter__(self) -> Any:
        if self.num_workers > 0 and not self._checked:
            self._check()
            self._checked = True
        return super().__iter__()

    def _check(self) -> None:
        keys = next(iter(self.batch_sampler or ()), None)
        if keys is None:
            return
        # every worker loads batches ahead; the size of one image gives theirs
        ahead = min(self.num_workers * (self.prefetch_factor or 1), len(self))
        parts = list(_tensors(self.dataset[keys[0]]))
        check_files(self.num_workers, 4 * self.num_workers + ahead * (len(parts) + 1))
        check_shared_memory(self.num_workers, ahead * len(keys) * sum(part.nbytes for part in parts) + _SPARE_MEMORY)


def _tensors(item: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples."""
    if isinstance(item, tuple):
        for part in item:
            yield from _tensors(part)
    elif isinstance(item, Tensor):
        yield item


def check_files(workers: int, needed: int) -> None:
    """Check that this process may open the files that its workers need.

    Args:
        workers: the number of worker processes.
        needed: the number of files.

    Raises:
        OSError: the limit of open files is too low.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/dev/fd"))
    if limit != resource.RLIM_INFINITY and opened + needed + _SPARE_FILES > limit:
        raise OSError(
            f"--workers {workers} needs {needed + _SPARE_FILES} more open files than the {opened} that are open, and "
            f"the limit is {limit}: raise it (ulimit -n 1024), or use fewer --workers"
        )


def check_shared_memory(workers: int, needed: int) -> None:
    """Check that there is enough shared memory for the batches that workers load ahead.

    Args:
        workers: the number of worker processes.
        needed: bytes of the batches.

    Raises:
        OSError: there is too little shared memory, or none.
    """
    remedy = "in Docker, start the container with a larger --shm-size; or use fewer --workers, 0 needs none"
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise OSError(f"--workers {workers} needs shared memory, and there is none ({error}): {remedy}") from error
    if sys.platform == "linux":
        system = os.statvfs(_SHARED)
        free = system.f_bavail * system.f_frsize
        if free < needed:
            raise OSError(
                f"--workers {workers} needs {-(-needed // 2**20)} MiB of shared memory for batches loaded ahead, and "
                f"{_SHARED} has {free // 2**20} MiB: {remedy}"
            )
