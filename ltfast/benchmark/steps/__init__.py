"""One file a method: its training step, with ltfast and as published."""

NAMES = ("proco", "dscl", "lpt", "livt")
"""The names of `--methods`, and of their files."""
