"""The authors' class names and call signatures, so that a published training script runs with one import changed.

========================  ==================================================================
name                      replaces
========================  ==================================================================
``AGCL``                  ``cb_loss.AGCL`` of LPT
``LogitAdjust``           ``LogitAdjust`` of BCL, PaCo and ProCo
``BCE_loss``              ``util.loss.BCE_loss`` of LiVT
========================  ==================================================================
"""

from ltfast.compat.agcl import AGCL
from ltfast.compat.bce_loss import BCE_loss
from ltfast.compat.logit_adjust import LogitAdjust

__all__ = ["AGCL", "BCE_loss", "LogitAdjust"]
