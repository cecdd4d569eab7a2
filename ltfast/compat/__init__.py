"""Losses with the class names and call signatures of the authors' code: to use them in a published training script,
change its import.

| name | replaces |
| --- | --- |
| ``AGCL`` | ``cb_loss.AGCL`` of LPT |
| ``LDAMLoss``, ``FocalLoss`` | those of LDAM-DRW's ``losses`` |
| ``BalancedSoftmax``, ``balanced_softmax_loss`` | those of ``loss.BalancedSoftmaxLoss`` of BalancedMetaSoftmax |
| ``VSLoss`` | ``losses.VSLoss`` of VS-Loss |
| ``LogitAdjust`` | ``LogitAdjust`` of BCL, PaCo and ProCo |
| ``ProCoLoss`` | ``loss.proco.ProCoLoss`` of ProCo |
| ``BCE_loss`` | ``util.loss.BCE_loss`` of LiVT |
| ``DSCLLoss`` | ``dscl.DSCL.DSCLLoss`` of DSCL |
| ``PBSDLoss`` | ``dscl.DSCL.PBSDLoss`` of DSCL |

``ltfast.compat.lift`` replaces ``utils.losses`` of LIFT, some of whose losses have the same names.
"""

from ltfast.compat.agcl import AGCL
from ltfast.compat.balanced_softmax import BalancedSoftmax, balanced_softmax_loss
from ltfast.compat.bce_loss import BCE_loss
from ltfast.compat.dscl import DSCLLoss, PBSDLoss
from ltfast.compat.focal import FocalLoss
from ltfast.compat.ldam import LDAMLoss
from ltfast.compat.logit_adjust import LogitAdjust
from ltfast.compat.proco import ProCoLoss
from ltfast.compat.vs import VSLoss

__all__ = [
    "AGCL",
    "BCE_loss",
    "BalancedSoftmax",
    "DSCLLoss",
    "FocalLoss",
    "LDAMLoss",
    "LogitAdjust",
    "PBSDLoss",
    "ProCoLoss",
    "VSLoss",
    "balanced_softmax_loss",
]
