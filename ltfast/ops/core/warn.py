"""Warnings that point at the line that called ltfast."""

import sys
import warnings


def warn_caller(message: str) -> None:
    """Warn at the line that called ltfast: the innermost frame outside of ltfast and PyTorch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("ltfast", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
