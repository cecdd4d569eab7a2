"""Terminal output: control characters are escaped, and write errors and missing encodings are tolerated."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# Characters that a terminal interprets instead of displaying (C0, DEL, C1, line separators and bidirectional controls),
# and surrogates, which represent undecodable bytes of file names and which no encoding accepts.
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
    r"""Return the text on one line, with each control character replaced by its escape, such as `\x1b` or `\n`."""
    return text.translate(_ESCAPES)


def say(text: str, *, error: bool = False) -> None:
    """Print the text as one line (see `shown`) to standard output, or to standard error if `error`."""
    print(shown(text), file=sys.stderr if error else sys.stdout)


class Output:
    """A stream whose write errors (a full disk, a closed pipe) discard the output instead of raising.

    Attributes:
        error: the first write error, or None.
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
        """Stop writing, and redirect the stream to null: Python's own flush at exit would otherwise fail."""
        self.error = error
        with suppress(OSError):  # a stream without a descriptor has nothing to flush
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def tolerant_streams() -> Iterator[Output | None]:
    """Replace standard output and standard error by `Output` streams that escape characters missing in their encoding.

    Yields:
        The new standard output, or None if the process has none.
    """
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
