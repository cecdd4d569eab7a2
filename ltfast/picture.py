"""Writes pictures, which are drawn in memory first. Names in them are plain text, whatever characters they contain."""

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, wraps
from io import BytesIO
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

from ltfast.files import replace_file
from ltfast.terminal import say

P = ParamSpec("P")


def picture(draw: Callable[P, Figure | None]) -> Callable[Concatenate[Path, P], bool]:
    """Turn a function that draws a figure into one that writes it. The new function takes the path of the file first,
    with the suffix .png, .pdf or .svg, and returns whether it wrote a picture. If `draw` returns None, it writes none.

    An error while drawing is reported on one line and not raised, because a picture must not end a run. A file that
    cannot be written raises an OSError.
    """

    @wraps(draw)
    def write(path: Path, *args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            figure = draw(*args, **kwargs)
            if figure is None:
                return False
            content, missing = _render(figure, path.suffix[1:])
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            say(f"{path} was not drawn: {reason[:300]}")
            return False
        replace_file(path, lambda file: file.write(content))
        if missing:
            say(f"{path}: no installed font has {missing}, so boxes are drawn; install one that has, for example Noto")
        return True

    return write


def short_name(name: str, most: int = 30) -> str:
    """A name on one line, cut to `most` characters. Characters that cannot be printed are replaced by a mark."""
    # the two joiners are kept: letters of several scripts depend on them
    kept = (c if c.isprintable() or c.isspace() or c in "\u200c\u200d" else "\N{REPLACEMENT CHARACTER}" for c in name)
    line = " ".join("".join(kept).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def as_text(words: Sequence[str]) -> dict[str, Any]:
    """Matplotlib's options for text without mathematics between dollar signs, in fonts that have its characters."""
    family = list(rcParams["font.family"])
    wanted = {ord(character) for word in words for character in word if not character.isspace()}
    for name in family:
        wanted -= _characters(font_manager.findfont(FontProperties(family=[name])))
    for name, font in _others() if wanted else ():
        found = wanted & _characters(font)
        if found:
            family.append(name)
            wanted -= found
        if not wanted:
            break
    return {"parse_math": False, "usetex": False, "fontfamily": family}


def _others() -> list[tuple[str, str]]:
    """The names and files of upright fonts of normal weight."""
    plain = [
        font
        for font in font_manager.fontManager.ttflist
        # "Last Resort" has a box for each character
        if font.style == "normal" and font.weight in (400, "normal", "regular") and "Last Resort" not in font.name
    ]
    return sorted({font.name: font.fname for font in plain}.items())


@cache
def _characters(font: str) -> frozenset[int]:
    with suppress(OSError, RuntimeError):  # a file that is not a font
        return frozenset(FT2Font(font).get_charmap())
    return frozenset()


def _render(figure: Figure, format: str) -> tuple[bytes, str]:
    """The file's content, and the characters that no font has, in words."""
    content = BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "Glyph ")
        figure.savefig(content, format=format)
    codes: dict[int, None] = {}
    for warning in caught:
        # matplotlib warns of each character, each time that it measures or draws it
        if match := re.match(r"Glyph (\d+) .*missing from", str(warning.message)):
            codes[int(match[1])] = None
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    more = f" and {len(codes) - 5} more" if len(codes) > 5 else ""
    return content.getvalue(), ", ".join(f"U+{code:04X}" for code in list(codes)[:5]) + more
