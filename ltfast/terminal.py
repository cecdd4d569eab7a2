"""What reaches the terminal: text without control characters, on streams that may be full, closed or ASCII."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# what a terminal acts on instead of showing it: C0, DEL, C1, and what separates lines or turns the direction of text;
# and surrogates, which stand for the bytes of a file's name that are no text, and which no encoding takes
_HIDDEN = (
    *range(0x20),
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _HIDDEN}


def shown(text: str) -> str:
    r"""The text on one line that a terminal shows as it is: a control character becomes its escape, `\x1b` or `\n`."""
    return text.translate(_ESCAPES)


def say(text: str, *, error: bool = False) -> None:
    """Print a line, on standard output or standard error, through `shown`."""
    print(shown(text), file=sys.stderr if error else sys.stdout)


class Output:
    """A stream that takes everything: what cannot be written (a full disk, a pipe that nobody reads) is lost.

    Attributes:
        error: why something was lost; None if nothing was.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                self.stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Nothing more is written: Python itself would fail at its end, flushing what it still has."""
        self.error = error
        with suppress(OSError):  # a stream without a descriptor has nothing to flush
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def tolerant_streams() -> Iterator[Output | None]:
    """Standard output and standard error as an `Output` each, which show characters that their encoding lacks as
    escapes; the former is given, None where the process has none."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    output = None if sys.stdout is None else Output(sys.stdout)
    errors = None if sys.stderr is None else Output(sys.stderr)
    sys.stdout, sys.stderr = output, errors
    try:
        yield output
    finally:
        for stream in (output, errors):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
