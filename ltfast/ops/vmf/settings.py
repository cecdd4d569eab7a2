"""The settings of ``vmf_cross_entropy``: its arguments that are not tensors."""

from typing import NamedTuple


class VmfSettings(NamedTuple):
    """The arguments of ``vmf_cross_entropy``; see there."""

    temperature: float
    ignore_index: int
    reduction: str
