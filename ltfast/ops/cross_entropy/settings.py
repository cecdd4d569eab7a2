"""The settings of ``cross_entropy``: its arguments that are not tensors."""

from typing import NamedTuple

from ltfast.ops.core import checks


class CrossEntropySettings(NamedTuple):
    """The arguments of ``cross_entropy``; see there."""

    label_smoothing: float
    ignore_index: int
    reduction: str


def check_settings(settings: CrossEntropySettings) -> None:
    """Raise a ValueError or TypeError that names the setting that ``cross_entropy`` cannot take."""
    checks.check_reduction(settings.reduction)
    checks.check_label_smoothing(settings.label_smoothing)
    checks.check_integer("ignore_index", settings.ignore_index)
