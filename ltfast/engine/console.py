"""The console of a run, for lines, tables and progress bars."""

from collections.abc import Callable
from typing import Any

from rich import console

from ltfast.progress import Progress
from ltfast.terminal import shown


class Console(console.Console):
    """rich's console, set to print text unchanged: without markup, emoji and line breaks, and with control characters
    as escapes. The cells of a table are markup and need `rich.markup.escape` and `shown`.

    Args:
        quiet: print nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet, soft_wrap=True, highlight=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        lines = (shown(x) if isinstance(x, str) else x for x in objects)
        super().print(*lines, **{"markup": False, **options})

    def progress(self, note: Callable[[], str] | None = None) -> Progress:
        """Progress bars, or lines off a terminal. For `note` see `Progress`."""
        return Progress(self, note)
