"""One run at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make a run's folder if it is not there, and keep other runs out of it until the context ends.

    The system frees the lock of a process that dies, however it dies. There is no lock on Windows, nor on a file
    system that has none.

    Raises:
        OSError: the folder cannot be written, or another run is writing there.
    """
    path = out / ".lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise OSError(f"--out {out}: cannot be written: {error}") from error
    try:
        if not _lock(file):
            raise OSError(f"--out {out}: another run is writing there; wait for it, or choose another folder")
        try:
            yield
        finally:
            with suppress(OSError):  # Windows does not remove an open file
                path.unlink()
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    """Lock an open file; whether this succeeded."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        # not flock: the processes that load images would inherit it, and they outlive a killed run by seconds
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return os.fstat(file).st_nlink > 0  # else its owner removed it after it was opened here
