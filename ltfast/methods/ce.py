"""The baseline: one stage with one classifier and any of the losses for integer labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ltfast.engine import Plan
from ltfast.errors import SettingError
from ltfast.methods.context import BuildContext
from ltfast.methods.settings import loss_weight, unless_auto
from ltfast.methods.settings.ce import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from ltfast.data import DataBundle

ON_COSINES = ("agcl", "ldam")  # losses of cosines; the others take logits


def make_loss(settings: Settings, class_counts: Sequence[int]) -> nn.Module:
    """The loss that `--loss` names, for training images of these counts, length C.

    Raises:
        ValueError: the name is unknown, or a class has no images.
    """
    from ltfast.losses import AGCLLoss, BalancedBCELoss, LDAMLoss, LogitAdjustedLoss

    name, smoothing = settings.loss, unless_auto(settings.label_smoothing, 0.0)
    weight = loss_weight(settings, class_counts)
    if name == "cross_entropy":
        return nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    if name == "agcl":
        return AGCLLoss(class_counts, label_smoothing=unless_auto(settings.label_smoothing, 0.1))
    if name == "balanced_bce":
        return BalancedBCELoss(class_counts, label_smoothing=smoothing)
    if name == "logit_adjusted":
        return LogitAdjustedLoss(class_counts, weight=weight, label_smoothing=smoothing)
    if name == "ldam":
        return LDAMLoss(class_counts, weight=weight)
    raise SettingError("loss", "cross_entropy, logit_adjusted, agcl, balanced_bce or ldam", name)


def build(
    settings: Settings,
    bundle: "DataBundle",
    context: BuildContext,
) -> Plan:
    """The plan with its one stage. The initial weights come from torch's global generator.

    Raises:
        ValueError: a setting does not fit the data.
    """
    # importing these takes seconds, and --help does not need them
    from ltfast.data import train_transform
    from ltfast.methods.batches import evaluation_batches, train_batches, validation_batches
    from ltfast.methods.check_batch_norm import check_batch_norm
    from ltfast.methods.fused_classifier import fused_loss
    from ltfast.methods.start import initial_weights
    from ltfast.models import ImageClassifier

    settings = settings.chosen(bundle)
    size = settings.size_for(bundle)
    batches = train_batches(
        bundle,
        [train_transform(bundle, settings.augment, size)],
        batch_size=settings.batch_size,
        context=context,
        sampler=settings.sampler,
    )
    network = ImageClassifier(
        settings.backbone,
        bundle.num_classes,
        head="cosine" if settings.loss in ON_COSINES else "linear",
        in_chans=bundle.channels,
        image_size=size,
        pretrained=settings.pretrained,
    )
    images = context.normalised_together(settings.batch_size)
    check_batch_norm(network, (bundle.channels, size, size), images, "batch_size")
    loss: Any = make_loss(settings, bundle.class_counts)
    fused = fused_loss(loss, context, rows=settings.batch_size, num_classes=bundle.num_classes)
    stage = SupervisedStage("train", batches, settings, network=network, loss=fused)
    stage.initial = initial_weights(settings, bundle, context, network.backbone, network.head)
    if settings.loss in ON_COSINES:
        stage.score_scale = loss.scale
    test = evaluation_batches(bundle, size, context=context)
    validation = validation_batches(bundle, size, context=context)
    return Plan([stage], test, validation=validation)
