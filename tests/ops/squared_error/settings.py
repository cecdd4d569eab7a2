from typing import NamedTuple


class SquaredErrorSettings(NamedTuple):
    scale: float
    ignore_index: int
    reduction: str
