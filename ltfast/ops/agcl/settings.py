"""The settings of ``agcl``: its arguments that are not tensors."""

from typing import NamedTuple

from ltfast.ops.core import checks


class AgclSettings(NamedTuple):
    """The arguments of ``agcl``; see there. ``first_row`` is the row of the noise at which the logits begin."""

    scale: float
    margin: float
    weight_pos: float
    weight_neg: float
    gamma_pos: float
    gamma_neg: float
    ignore_index: int
    reduction: str
    first_row: int = 0


class AgclShareSettings(NamedTuple):
    """What the sums over a share of the classes need of them. ``first`` is the column of the share's first class."""

    first: int
    scale: float
    margin: float
    gamma_neg: float


def check_settings(settings: AgclSettings) -> None:
    """Raise a ValueError or TypeError that names the setting that ``agcl`` cannot take."""
    checks.check_positive("scale", settings.scale)
    for name in ("margin", "weight_pos", "weight_neg"):
        checks.check_number(name, getattr(settings, name))
    for name in ("gamma_pos", "gamma_neg"):
        checks.check_number(name, getattr(settings, name), at_least=0)
    checks.check_integer("ignore_index", settings.ignore_index)
    checks.check_reduction(settings.reduction)
