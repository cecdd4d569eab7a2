"""Fast long-tailed image classification: fused losses for any PyTorch script, and complete runs from one command.

``ltfast.losses`` has the loss modules, ``ltfast.ops`` the functions that they call, and ``ltfast train`` runs complete
methods.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltfast.ops.core.backends import backend

__all__ = ["__version__", "backend"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `backend` on first access: importing PyTorch takes seconds, and `ltfast --help` does not need it."""
    if name == "backend":
        from ltfast.ops.core.backends import backend

        return backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
