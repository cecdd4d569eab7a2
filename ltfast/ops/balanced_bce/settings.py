"""The settings of ``balanced_bce``: its arguments that are not tensors."""

from typing import NamedTuple

from ltfast.ops.core import checks


class BalancedBceSettings(NamedTuple):
    """The arguments of ``balanced_bce``; see there. ``threshold`` is its ``target_threshold``."""

    label_smoothing: float
    threshold: float | None
    ignore_index: int
    reduction: str


def check_settings(settings: BalancedBceSettings) -> None:
    """Raise a ValueError or TypeError that names the setting that ``balanced_bce`` cannot take."""
    checks.check_reduction(settings.reduction)
    checks.check_label_smoothing(settings.label_smoothing)
    if settings.threshold is not None:
        checks.check_number("target_threshold", settings.threshold)
