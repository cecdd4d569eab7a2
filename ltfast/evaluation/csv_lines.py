"""Lines of the CSV files with predictions."""

import csv
import io
from collections.abc import Iterable

import numpy as np


def line(cells: Iterable[str]) -> bytes:
    """A line in UTF-8, which ends with a line feed. Names of files may have any bytes."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode(errors="surrogateescape")


def digits(probability: float) -> str:
    """The fewest digits that give the same float32 number."""
    return str(np.float32(probability))
