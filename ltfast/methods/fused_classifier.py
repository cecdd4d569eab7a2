"""`--fused-classifier`: a classifier and its loss in one, without the (B, C) class scores.

A method gives `fused_loss` the loss of its classifier when it is built, and calls `classifier_loss` in each step.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ltfast.engine import Stage
from ltfast.errors import SettingError
from ltfast.losses.linear import LinearAGCLLoss, is_linear, linear_form
from ltfast.methods.context import BuildContext
from ltfast.models import CosineClassifier

# Scores of a call from which auto leaves them out: they and their gradient then take 128 MiB in float32, and a block of
# rows a quarter of it on a CPU, a half on a GPU. The time does not decide. Measured on a CPU (1 thread, CPU time of the
# step of head and loss): below 2^15 scores the step without them takes 1.3 to 3 times as long, up to 2^20 0.9 to 1.4
# times the speed, from 2^21 on 0.96 to 1.2 times, with A-GCL 1.1 to 1.9. Not measured on a GPU.
LARGE = 2**24


def fused_loss(loss: nn.Module, context: BuildContext, *, rows: int, num_classes: int) -> nn.Module:
    """The loss of a classifier: `loss` itself, or its form without scores.

    Args:
        loss: takes class scores and targets.
        context: has the setting `fused_classifier`.
        rows: rows B of a call of the loss.
        num_classes: number of classes C.

    Raises:
        SettingError: the setting is "on", and this loss has no form without scores.
    """
    chosen = context.run.fused_classifier
    linear = linear_form(loss)
    if linear is None:
        if chosen == "on":
            expected = f"auto or off for {type(loss).__name__}, which has no form without class scores"
            raise SettingError("fused_classifier", expected, chosen)
        return loss
    return linear if chosen == "on" or (chosen == "auto" and rows * num_classes >= LARGE) else loss


def classifier_loss(
    loss: nn.Module, head: Any, features: Tensor, target: Tensor, *, scale: float | Tensor = 1.0
) -> Tensor:
    """`loss(scale * head(features), target)`.

    Args:
        loss, head, features, scale: see `loss_inputs`.
        target: (B,) labels or (B, C) probabilities, as the loss takes them.
    """
    return loss(*loss_inputs(loss, head, features, scale=scale), target)


def loss_inputs(loss: nn.Module, head: Any, features: Tensor, *, scale: float | Tensor = 1.0) -> tuple[Any, ...]:
    """What the loss takes before its target: the class scores (B, C), or the features (B, D), weight and bias of a
    linear layer with these scores. The first has a row for each image.

    Args:
        loss: from `fused_loss`.
        head: an `nn.Linear` or a `CosineClassifier`, with C classes; any module if `loss` takes scores.
        features: (B, D).
        scale: a factor of the scores; a tensor () if it is trained.
    """
    scaled = isinstance(scale, Tensor) or scale != 1  # the value of a tensor is not read
    if not is_linear(loss):
        scores = head(features)
        return (scale * scores if scaled else scores,)
    weight, bias = head.weight, getattr(head, "bias", None)
    if isinstance(head, CosineClassifier) and not isinstance(loss, LinearAGCLLoss):  # that loss normalises both itself
        features, weight = head.unit(features)
    if scaled:
        weight, bias = scale * weight, None if bias is None else scale * bias
    return features, weight, bias


def fused_stages(stages: Iterable[Stage]) -> list[str]:
    """The names of the stages that have a loss without class scores."""
    return [stage.name for stage in stages if any(map(is_linear, stage.modules()))]
