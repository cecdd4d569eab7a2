"""The training loop and what surrounds it: stages, checkpoints, metrics, reports.

Here is what a method is written with; none of it is slow to import. The loop is `ltfast.engine.loop.train`.
"""

from ltfast.engine.optimisation import Optimisation
from ltfast.engine.settings import RunSettings, check, option
from ltfast.engine.stage import Adapted, Batches, Plan, Predictor, Stage

__all__ = ["Adapted", "Batches", "Optimisation", "Plan", "Predictor", "RunSettings", "Stage", "check", "option"]
