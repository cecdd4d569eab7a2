"""The loss of a classifier by its name, `--loss`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from ltfast.errors import SettingError
from ltfast.methods.settings import loss_weight, unless_auto
from ltfast.methods.settings.classifier_loss import ClassifierLossSettings


def make_loss(settings: ClassifierLossSettings, class_counts: Sequence[int]) -> nn.Module:
    """The loss that `--loss` names, for training images of these counts, length C.

    Raises:
        ValueError: the name is unknown, or a class has no images.
    """
    from ltfast import losses

    makers: dict[str, Callable[..., nn.Module]] = {
        "cross_entropy": lambda _, **options: nn.CrossEntropyLoss(**options),
        "logit_adjusted": losses.LogitAdjustedLoss,
        "balanced_softmax": losses.BalancedSoftmaxLoss,
        "balanced_bce": losses.BalancedBCELoss,
        "agcl": losses.AGCLLoss,
        "ldam": losses.LDAMLoss,
        "gcl": losses.GCLLoss,
        "focal": losses.FocalLoss,
        "class_balanced": losses.ClassBalancedLoss,
        "class_balanced_focal": partial(losses.ClassBalancedLoss, loss="focal"),
        "vs": losses.VSLoss,
        "lade": losses.LADELoss,
        "seesaw": losses.SeesawLoss,
    }
    name, takes = settings.loss_takes()
    if name not in makers:
        raise SettingError("loss", f"one of {', '.join(makers)}", name)
    smoothing = unless_auto(settings.label_smoothing, 0.1 if name == "agcl" else 0.0)
    options: dict[str, Any] = {"label_smoothing": smoothing}
    if "class_weights" in takes:
        options["weight"] = loss_weight(settings, class_counts)
    return makers[name](class_counts, **options)
