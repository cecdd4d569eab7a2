"""The training loop and what surrounds it: stages, checkpoints, metrics, reports.

The package exports what the code of a method needs. The loop is `ltfast.engine.loop.train`.
"""

from typing import TYPE_CHECKING, Any

from ltfast.engine.optimisation import Optimisation
from ltfast.engine.settings import RunSettings, check, option

if TYPE_CHECKING:
    from ltfast.engine.stage import Adapted, Batches, Plan, Predictor, Stage

__all__ = ["Adapted", "Batches", "Optimisation", "Plan", "Predictor", "RunSettings", "Stage", "check", "option"]


def __getattr__(name: str) -> Any:
    """Import `stage` on first use: it needs PyTorch, and settings do not."""
    if name in ("Adapted", "Batches", "Plan", "Predictor", "Stage"):
        from ltfast.engine import stage

        return getattr(stage, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
