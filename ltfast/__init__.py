"""Fast training on long-tailed images: fused losses for any PyTorch script, and whole runs from one command.

``ltfast.losses`` drops into any PyTorch script; ``ltfast.ops`` holds the functions behind it;
``ltfast train`` runs whole methods.
"""

from ltfast.ops.backends import backend

__all__ = ["__version__", "backend"]
__version__ = "0.1.0"
