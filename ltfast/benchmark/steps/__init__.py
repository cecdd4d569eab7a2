"""One file for each method: its own stage, and the stage with the losses as published."""

NAMES = ("proco", "dscl", "lpt", "livt")
"""The methods that can be timed; their files have the same names."""
