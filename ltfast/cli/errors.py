"""What a user sees when something fails, and the exit status."""

import signal
import threading
import traceback
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ltfast
from ltfast.errors import UserError
from ltfast.terminal import Output, say, shown

_EXTRA = {"accelerate", "matplotlib", "rich", "safetensors", "sklearn", "tensorboard", "timm",
          "torchmetrics", "torchvision", "yaml", "PIL"}  # fmt: skip


class UsageError(UserError):
    """What the user asked for cannot be done."""


def flag(name: str) -> str:
    """The option of a setting: `--batch-size`. `ltfast.data` calls `--data` the source."""
    return "--data" if name == "source" else f"--{name.replace('_', '-')}"


def failed(error: Exception, *, verbose: bool) -> int:
    """Say what an error is in one line; of a fault of the program, show the traceback. The exit status."""
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
        say(f"ltfast: error: the memory is too small; a lower --batch-size needs less ({name})", error=True)
    elif isinstance(error, OSError) or type(error).__name__ == "TrainingError":
        say(f"ltfast: error: {text}", error=True)
    else:
        if not verbose:
            _show_traceback(error)
        say(f"ltfast: error: {name}: a fault of the program, not of what you asked for; the lines above say where",
            error=True)  # fmt: skip
    return 1


def interrupted(out: str | None) -> int:
    """Say so, and whether the training that writes to this folder continues. The exit status."""
    continues = out is not None and (Path(out) / "checkpoint.pt").exists()
    hint = "; the same command continues from the last checkpoint" if continues else ""
    say(f"ltfast: interrupted{hint}", error=True)
    return 130


def _show_traceback(error: Exception) -> None:
    for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
        say(line, error=True)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """The interrupts that have come. The signal raises KeyboardInterrupt, as it does without this."""
    noted: list[int] = []

    def note(number: int, frame: types.FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # it is something else where the process was told to ignore it, or where others have made it theirs
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
    """Warnings as a line each: ltfast's own without the place where they come from."""
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
    """Whether standard output could not be written. That nobody reads it any more (`ltfast info | head -1`) is not
    worth a word."""
    if output is None:
        return False
    output.flush()
    if output.error is None or isinstance(output.error, BrokenPipeError):
        return False
    say(f"ltfast: standard output cannot be written: {output.error}; what goes to files is written", error=True)
    return True


def _lost_process(error: Exception) -> str | None:
    """What to say of an error that is another process's death; gloo and the DataLoader have no class for it."""
    name, text = type(error).__name__, str(error)
    if name in ("DistBackendError", "DistNetworkError") or (isinstance(error, RuntimeError) and "/gloo/" in text):
        return "another process of this run has ended, and has said why if it could"
    if isinstance(error, (ConnectionError, EOFError)) or "DataLoader worker" in text:
        return "a process that loads images has ended; if memory was short, fewer --workers need less"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class for a GPU's memory alone."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )  # fmt: skip


def one_line(error: BaseException | str) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split())
