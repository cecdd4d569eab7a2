"""The console of a run, for lines, tables and progress bars."""

from typing import Any

from rich import console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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

    def progress(self) -> Progress:
        """Progress bars. They appear on a terminal only, and disappear when they are complete."""
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self,
            transient=True,
            disable=not self.is_terminal,
        )
