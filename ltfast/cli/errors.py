"""Messages and exit statuses of failures."""

import signal
import threading
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ltfast
from ltfast.errors import UserError
from ltfast.terminal import Output, say, shown

_EXTRA = {"accelerate", "matplotlib", "rich", "safetensors", "sklearn", "tensorboard", "timm", "imagehash",
          "jinja2", "torchmetrics", "torchvision", "yaml", "PIL"}  # fmt: skip
_PROCESS_ENDS = 0.5  # seconds after its connection broke in which a process ends


class UsageError(UserError):
    """The command line is invalid."""


def flag(name: str) -> str:
    """The command-line option of a setting, such as `--batch-size`. In `ltfast.data`, `--data` is called the source."""
    return "--data" if name == "source" else f"--{name.replace('_', '-')}"


def failed(error: Exception, *, verbose: bool) -> int:
    """Print an error on one line, for a bug in the program after its traceback, and return the exit status."""
    if verbose:
        _show_traceback(error)
    text = one_line(error)
    if isinstance(error, UserError):
        say(f"ltfast: error: {text if error.name is None else f'{flag(error.name)}: {one_line(error.problem)}'}",
            error=True)  # fmt: skip
        return 2
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRA:
        say(f"ltfast: {error.name} is not installed; the command line needs pip install 'ltfast[train]'", error=True)
        return 2
    name = f"{type(error).__name__}: {text}"
    if lost := _lost_process(error):
        say(f"ltfast: error: {lost} ({name})", error=True)
    elif _is_out_of_memory(error):
        say(f"ltfast: error: out of memory; a lower --batch-size needs less ({name})", error=True)
    elif isinstance(error, OSError) or type(error).__name__ == "TrainingError":
        say(f"ltfast: error: {text}", error=True)
    else:
        if not verbose:
            _show_traceback(error)
        say(f"ltfast: error: {name}: this is a bug in ltfast, not in your input; see the traceback above",
            error=True)  # fmt: skip
    return 1


def interrupted(hint: str = "") -> int:
    """Report an interrupt and how the command can continue, and return the exit status."""
    say(f"ltfast: interrupted{hint}", error=True)
    return 130


def _show_traceback(error: Exception) -> None:
    for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
        say(line, error=True)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Record interrupts in the list that is yielded; the signal raises KeyboardInterrupt as usual."""
    noted: list[int] = []

    def note(number: int, frame: types.FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # another handler means that the process ignores the signal, or that other code handles it
    noting = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if noting:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if noting:
            signal.signal(signal.SIGINT, before)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Print each warning on one line; those from ltfast without file and line."""
    before = warnings.formatwarning
    own = str(Path(ltfast.__file__).parent)

    def on_one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        place = "" if filename.startswith(own) else f"{filename}:{lineno}: {category.__name__}: "
        return f"ltfast: warning: {shown(place + one_line(message))}\n"

    warnings.formatwarning = on_one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


def say_what_is_lost(output: Output | None) -> bool:
    """Report whether writing to standard output failed, and return it. A closed pipe (`ltfast info | head -1`) does not
    count."""
    if output is None:
        return False
    output.flush()
    if output.error is None or isinstance(output.error, BrokenPipeError):
        return False
    say(f"ltfast: standard output cannot be written: {output.error}; output files are written", error=True)
    return True


def _lost_process(error: Exception) -> str | None:
    """A message if another process has died; gloo and the DataLoader have no exception class for it."""
    name, text = type(error).__name__, str(error)
    if name in ("DistBackendError", "DistNetworkError") or (isinstance(error, RuntimeError) and "/gloo/" in text):
        return "another process of this run has ended; see its own message for the reason"
    broken = isinstance(error, (ConnectionError, EOFError))
    if broken or "DataLoader worker" in text:
        if broken:
            # when the process is gone, the DataLoader raises too, wherever its signal interrupts
            with suppress(RuntimeError):
                time.sleep(_PROCESS_ENDS)
        return "a process that loads images has ended; if memory ran out, fewer --workers need less"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or a CPU; PyTorch has an exception class only for the former."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )  # fmt: skip


def one_line(error: BaseException | str) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split())
