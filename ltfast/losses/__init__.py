"""Losses for long-tailed data: modules that store class counts, a queue or statistics, and call ``ltfast.ops``."""

from ltfast.losses.agcl import AGCLLoss
from ltfast.losses.balanced_bce import BalancedBCELoss
from ltfast.losses.balanced_softmax import BalancedSoftmaxLoss
from ltfast.losses.class_balanced import ClassBalancedLoss, effective_number_weights
from ltfast.losses.compensation import CompensationLoss
from ltfast.losses.dscl import DSCLLoss, SupConQueueLoss
from ltfast.losses.focal import FocalLoss
from ltfast.losses.gcl import GCLLoss
from ltfast.losses.lade import LADELoss
from ltfast.losses.ldam import LDAMLoss
from ltfast.losses.linear import (
    LinearAGCLLoss,
    LinearBalancedBCELoss,
    LinearCompensationLoss,
    LinearCrossEntropyLoss,
    LinearLogitAdjustedLoss,
)
from ltfast.losses.logit_adjusted import LogitAdjustedLoss
from ltfast.losses.memory_queue import MemoryQueue
from ltfast.losses.pbsd import PBSDLoss
from ltfast.losses.proco import ProCoLoss
from ltfast.losses.proco_branch import ProCoBranch
from ltfast.losses.queue_contrast import QueueContrast
from ltfast.losses.seesaw import SeesawLoss
from ltfast.losses.vs import VSLoss

__all__ = [
    "AGCLLoss",
    "BalancedBCELoss",
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "CompensationLoss",
    "DSCLLoss",
    "FocalLoss",
    "GCLLoss",
    "LADELoss",
    "LDAMLoss",
    "LinearAGCLLoss",
    "LinearBalancedBCELoss",
    "LinearCompensationLoss",
    "LinearCrossEntropyLoss",
    "LinearLogitAdjustedLoss",
    "LogitAdjustedLoss",
    "MemoryQueue",
    "PBSDLoss",
    "ProCoBranch",
    "ProCoLoss",
    "QueueContrast",
    "SeesawLoss",
    "SupConQueueLoss",
    "VSLoss",
    "effective_number_weights",
]
