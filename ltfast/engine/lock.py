"""A lock that admits one run at a time to a folder."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ltfast.errors import UserError


class FolderError(UserError, OSError):
    """A run's folder cannot be written, or another run uses it."""


class Lock:
    """The lock that this process holds on a folder."""

    def __init__(self, path: Path, file: int) -> None:
        """
        Args:
            path: the lock file.
            file: its descriptor, open and locked.
        """
        self.path, self._file = path, file

    def check(self) -> None:
        """Check that the folder is still the one that was locked. It is called before each write to the folder.

        Raises:
            FolderError: the lock file is missing or another one, as after `rm -r` and the start of a second run.
        """
        if not self._here():
            raise FolderError(
                f"--out {self.path.parent}: this folder, or the lock in it, was deleted or replaced while a run was "
                "writing there, and another run may have begun in it. The older run stops and writes nothing more"
            )

    def remove(self) -> None:
        """Delete the lock file, unless it belongs to another run."""
        with suppress(OSError):  # Windows does not remove an open file
            if self._here():
                self.path.unlink()

    def _here(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._file))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):  # file servers give the last
                return False
            raise


@contextmanager
def locked(out: Path) -> Iterator[Lock]:
    """Create a run's folder if it does not exist, and keep other runs out of it until the context ends.

    The operating system releases the lock of a process that dies for any reason. Windows and file systems without
    locks have no protection.

    Raises:
        FolderError: the folder cannot be written, another run is writing there, or `.lock` in it is no regular file.
    """
    path = out / ".lock"
    # do not follow a link that someone has put there, and do not wait for the other end of a pipe
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
    """Lock an open file. Returns whether it succeeded."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        # not flock: the processes that load images would inherit the lock, and they outlive a killed run by seconds
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return os.fstat(file).st_nlink > 0  # with no link left, its owner removed the file after it was opened here
