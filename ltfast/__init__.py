"""Fast long-tailed image classification: fused losses for any PyTorch script, and complete runs from one command.

``ltfast.losses`` has the loss modules, ``ltfast.ops`` the functions that they call, and ``ltfast train`` runs complete
methods.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltfast.ops.core.backends import backend

    __version__: str

__all__ = ["__version__", "backend"]


def __getattr__(name: str) -> Any:
    """Find `backend` and `__version__` on first access: what they import takes longer than `ltfast --help` should."""
    if name == "backend":
        from ltfast.ops.core.backends import backend

        return backend
    if name == "__version__":
        from ltfast.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
