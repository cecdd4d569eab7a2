"""Image-loading processes: what they will lack is said before they start."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

_SHARED = Path("/dev/shm")  # Linux's; where batches go from one process to another
_SPARE_FILES = 16  # for images, checkpoints and whatever else a run opens meanwhile
_SPARE_MEMORY = 2**20  # for semaphores, and the rest of each batch's last page


class Loader(DataLoader[Any]):
    """A `DataLoader` of batches of tensors that raises an OSError with a remedy where its worker processes would fail
    in the middle of a run: without shared memory, or with too little of it; with too few open files."""

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
        # every worker loads ahead; one image tells how large its batches are
        ahead = min(self.num_workers * (self.prefetch_factor or 1), len(self))
        parts = [part for part in self.dataset[keys[0]] if isinstance(part, Tensor)]
        check_files(self.num_workers, 4 * self.num_workers + ahead * (len(parts) + 1))
        check_shared_memory(self.num_workers, ahead * len(keys) * sum(part.nbytes for part in parts) + _SPARE_MEMORY)


def check_files(workers: int, needed: int) -> None:
    """
    Args:
        workers: processes that are to start.
        needed: files that this process opens for them.

    Raises:
        OSError: it may not open as many.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/dev/fd"))
    if limit != resource.RLIM_INFINITY and opened + needed + _SPARE_FILES > limit:
        raise OSError(
            f"--workers {workers} needs {needed + _SPARE_FILES} open files more than the {opened} that there are, and "
            f"the limit is {limit}: raise it (ulimit -n 1024), or use fewer --workers"
        )


def check_shared_memory(workers: int, needed: int) -> None:
    """
    Args:
        workers: processes that are to start.
        needed: bytes of the batches that they load ahead.

    Raises:
        OSError: the processes would not have as much.
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
