"""The baseline: one stage with one classifier and any of the losses for integer labels."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ltfast.engine import Batches, Optimisation, Plan
from ltfast.methods.classifier_loss import make_loss
from ltfast.methods.context import BuildContext
from ltfast.methods.settings.ce import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from ltfast.data import DataBundle

ON_COSINES = ("agcl", "ldam", "gcl")  # losses of cosines; the others take logits


class DeferredStage(SupervisedStage):
    """A stage whose loss gets its class weights only after some epochs (deferred re-weighting: Cao et al., NeurIPS
    2019)."""

    class_weights: Tensor

    def __init__(
        self, name: str, batches: Batches, optimisation: Optimisation, *, network: nn.Module, loss: Any, epochs: int
    ) -> None:
        """
        Args:
            name, batches, optimisation, network: see `SupervisedStage`.
            loss: from `fused_loss`, with class weights.
            epochs: the number of epochs without weights.
        """
        super().__init__(name, batches, optimisation, network=network, loss=loss)
        self.unweighted = epochs
        self.register_buffer("class_weights", loss.weight.clone(), persistent=False)

    def prepare(self, batch: Any) -> Any:
        # in each step, and not once: a run may continue within an epoch; in place, because the step may be compiled
        weight: Any = self.loss.weight
        if self.epoch < self.unweighted:
            weight.fill_(1)
        else:
            weight.copy_(self.class_weights)
        return batch


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
    stage: SupervisedStage
    if settings.defer_reweighting is None:
        stage = SupervisedStage("train", batches, settings, network=network, loss=fused)
    else:
        stage = DeferredStage(
            "train", batches, settings, network=network, loss=fused, epochs=settings.defer_reweighting
        )
    stage.initial = initial_weights(settings, bundle, context, network.backbone, network.head)
    if settings.loss in ON_COSINES:
        stage.score_scale = loss.scale
    test = evaluation_batches(bundle, size, context=context)
    validation = validation_batches(bundle, size, context=context)
    return Plan([stage], test, validation=validation)
