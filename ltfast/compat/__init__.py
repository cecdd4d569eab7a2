"""The authors' class names and call signatures, so that a published training script runs with one import changed.

| name | replaces |
| --- | --- |
| ``AGCL`` | ``cb_loss.AGCL`` of LPT |
| ``LogitAdjust`` | ``LogitAdjust`` of BCL, PaCo and ProCo |
| ``ProCoLoss`` | ``loss.proco.ProCoLoss`` of ProCo |
| ``BCE_loss`` | ``util.loss.BCE_loss`` of LiVT |
| ``DSCLLoss`` | ``dscl.DSCL.DSCLLoss`` of DSCL |
| ``PBSDLoss`` | ``dscl.DSCL.PBSDLoss`` of DSCL |
"""

from ltfast.compat.agcl import AGCL
from ltfast.compat.bce_loss import BCE_loss
from ltfast.compat.dscl import DSCLLoss, PBSDLoss
from ltfast.compat.logit_adjust import LogitAdjust
from ltfast.compat.proco import ProCoLoss

__all__ = ["AGCL", "BCE_loss", "DSCLLoss", "LogitAdjust", "PBSDLoss", "ProCoLoss"]
