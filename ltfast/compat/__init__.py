"""Losses with the class names and call signatures of the authors' code: to use them in a published training script,
change its import.

| name | replaces |
| --- | --- |
| ``AGCL`` | ``cb_loss.AGCL`` of LPT |
| ``LDAMLoss`` | ``losses.LDAMLoss`` of LDAM-DRW |
| ``LogitAdjust`` | ``LogitAdjust`` of BCL, PaCo and ProCo |
| ``ProCoLoss`` | ``loss.proco.ProCoLoss`` of ProCo |
| ``BCE_loss`` | ``util.loss.BCE_loss`` of LiVT |
| ``DSCLLoss`` | ``dscl.DSCL.DSCLLoss`` of DSCL |
| ``PBSDLoss`` | ``dscl.DSCL.PBSDLoss`` of DSCL |
"""

from ltfast.compat.agcl import AGCL
from ltfast.compat.bce_loss import BCE_loss
from ltfast.compat.dscl import DSCLLoss, PBSDLoss
from ltfast.compat.ldam import LDAMLoss
from ltfast.compat.logit_adjust import LogitAdjust
from ltfast.compat.proco import ProCoLoss

__all__ = ["AGCL", "BCE_loss", "DSCLLoss", "LDAMLoss", "LogitAdjust", "PBSDLoss", "ProCoLoss"]
