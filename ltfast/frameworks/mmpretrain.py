"""Losses and a cosine head for MMPretrain's configurations. Importing this file registers them under ``ltfast``:

    custom_imports = dict(imports=["ltfast.frameworks.mmpretrain"])
    model = dict(head=dict(type="LinearClsHead", loss=dict(type="ltfast.LogitAdjustedLoss", class_counts=[500, 50, 5])))

It needs ``mmpretrain``, ``mmengine``, and ``mmcv`` or ``mmcv-lite``.
"""

from typing import Any

from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from ltfast import losses
from ltfast.models.cosine_classifier import CosineClassifier

OF_SCORES = (
    "AGCLLoss",
    "BalancedBCELoss",
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "CompensationLoss",
    "FocalLoss",
    "GCLLoss",
    "LADELoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "SeesawLoss",
    "VSLoss",
)

MODELS = Registry("model", parent=ROOT, scope="ltfast")


class Loss(nn.Module):
    """A loss of class scores with the signature of MMPretrain's losses.

    Args:
        criterion: the loss, with reduction "mean".
        loss_weight: factor of the loss.

    Shapes: cls_score and label are those of the criterion.
    """

    def __init__(self, criterion: nn.Module, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.criterion, self.loss_weight = criterion, loss_weight

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Compute the loss. ``avg_factor`` has no effect: MMPretrain's heads pass the batch size, of which the
        criterion's mean leaves out ignored labels.

        Raises:
            ValueError: ``weight`` or ``reduction_override`` is not None.
        """
        for name, value in (("weight", weight), ("reduction_override", reduction_override)):
            if value is not None:
                raise ValueError(f"{name} is {value!r}: expected None, the losses of ltfast do not take it")
        return self.loss_weight * self.criterion(cls_score, label)


def _register(name: str) -> None:
    def build(loss_weight: float = 1.0, **arguments: Any) -> Loss:
        return Loss(getattr(losses, name)(**arguments), loss_weight)

    build.__name__ = name
    MODELS.register_module(name=name, module=build)


for _name in OF_SCORES:
    _register(_name)


@MODELS.register_module()
class CosineClsHead(LinearClsHead):
    """``LinearClsHead`` with cosines instead of logits, for ``AGCLLoss``, ``GCLLoss`` and ``LDAMLoss``.

    Args:
        num_classes: C.
        in_channels: width of the features.
        kwargs: see ``LinearClsHead``.
    """

    def __init__(self, num_classes: int, in_channels: int, **kwargs: Any) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.fc = CosineClassifier(in_channels, num_classes)
