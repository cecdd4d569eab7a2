"""The settings of the methods. Each file has a dataclass `Settings`, whose fields are a method's command-line options.

They are separate from the methods, so that the command line knows every option without importing PyTorch.
"""

from ltfast.methods.settings import ce, decoupled_optimisation, dscl, lift, livt, lpt, proco
from ltfast.methods.settings.backbone import BackboneSettings, loss_weight, unless_auto

__all__ = [
    "BackboneSettings",
    "ce",
    "decoupled_optimisation",
    "dscl",
    "lift",
    "livt",
    "loss_weight",
    "lpt",
    "proco",
    "unless_auto",
]
