"""Losses for long-tailed data: ``nn.Module``s that hold the class counts and call ``ltfast.ops``."""

from ltfast.losses.agcl import AGCLLoss
from ltfast.losses.balanced_bce import BalancedBCELoss
from ltfast.losses.compensation import CompensationLoss
from ltfast.losses.logit_adjusted import LogitAdjustedLoss
from ltfast.losses.proco import ProCoLoss

__all__ = ["AGCLLoss", "BalancedBCELoss", "CompensationLoss", "LogitAdjustedLoss", "ProCoLoss"]
