"""The methods' settings: one file each, a dataclass `Settings` whose fields are the method's command-line options.

They stand apart from the methods, so that the command line knows every option without importing PyTorch.
"""

from ltfast.methods.settings import ce, decoupled_optimisation, dscl, livt, lpt, proco
from ltfast.methods.settings.backbone import BackboneSettings, unless_auto

__all__ = ["BackboneSettings", "ce", "decoupled_optimisation", "dscl", "livt", "lpt", "proco", "unless_auto"]
