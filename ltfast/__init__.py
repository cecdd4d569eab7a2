"""Fast training on long-tailed images: fused losses for any PyTorch script, and whole runs from one command.

``ltfast.losses`` drops into any PyTorch script; ``ltfast.ops`` holds the functions behind it;
``ltfast train`` runs whole methods.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltfast.ops.core.backends import backend

__all__ = ["__version__", "backend"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`backend` when it is first asked for: PyTorch takes seconds to import, and `ltfast --help` needs none of it."""
    if name == "backend":
        from ltfast.ops.core.backends import backend

        return backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
