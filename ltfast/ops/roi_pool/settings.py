"""The settings of ``patch_roi_pool``: its arguments that are not tensors."""

from typing import NamedTuple


class RoiPoolSettings(NamedTuple):
    """The arguments of ``patch_roi_pool``; see there."""

    spatial_scale: float
    output_size: int
    sampling_ratio: int
    aligned: bool
