"""One run at a time in a folder."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ltfast.errors import UserError


class FolderError(UserError, OSError):
    """A run's folder cannot be written, or is another run's."""


class Lock:
    """The lock of a folder, which is held."""

    def __init__(self, path: Path, file: int) -> None:
        """
        Args:
            path: of the lock's file.
            file: that file, open and locked.
        """
        self.path, self._file = path, file

    def check(self) -> None:
        """Make sure that the folder is still the one that was locked: before each write to it.

        Raises:
            FolderError: the lock's file is gone or another one, as after `rm -r` and the start of a second run.
        """
        if not self._here():
            raise FolderError(
                f"--out {self.path.parent}: this folder, or the lock in it, was deleted or replaced while a run was "
                "writing there, and another run may have begun in it. The older run stops and writes nothing more"
            )

    def remove(self) -> None:
        """Delete the lock's file, unless it is another run's."""
        with suppress(OSError):  # Windows does not remove an open file
            if self._here():
                self.path.unlink()

    def _here(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._file))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):  # the last on a file server
                return False
            raise


@contextmanager
def locked(out: Path) -> Iterator[Lock]:
    """Make a run's folder if it is not there, and keep other runs out of it until the context ends.

    The system frees the lock of a process that dies, however it dies. There is no lock on Windows, nor on a file
    system that has none.

    Raises:
        FolderError: the folder cannot be written, another run is writing there, or `.lock` in it is no regular file.
    """
    path = out / ".lock"
    # neither follow a link that someone has put there, nor wait for the other end of a pipe
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    no_file = f"--out {out}: {path} is a link or another thing than a file; delete it"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(path, flags, 0o666)
    except OSError as error:
        planted = os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path))
        raise FolderError(no_file if planted else f"--out {out}: cannot be written: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise FolderError(no_file)
        if not _lock(file):
            raise FolderError(f"--out {out}: another run is writing there; wait for it, or choose another folder")
        lock = Lock(path, file)
        try:
            yield lock
        finally:
            lock.remove()
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
