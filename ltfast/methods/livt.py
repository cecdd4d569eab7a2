"""LiVT: Xu et al., "Learning Imbalanced Data with Vision Transformers", CVPR 2023.

The method has two stages. First a vision transformer is pre-trained as a masked autoencoder on the long-tailed images
without their labels. Then it is fine-tuned with mixed images and the balanced binary cross-entropy, with lower learning
rates for its first layers. The checkpoint also keeps the pre-trained encoder, from which another run can start
(`init`).

The transformer's final normalisation precedes the mean over the tokens, as in timm; the authors' follows it.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ltfast.engine import Batches, Optimisation, Plan, Stage
from ltfast.errors import SettingError
from ltfast.methods.context import BuildContext
from ltfast.methods.fused_classifier import fused_loss
from ltfast.methods.settings import loss_weight, unless_auto
from ltfast.methods.settings.livt import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from timm.data import Mixup
    from timm.models.vision_transformer import VisionTransformer

    from ltfast.data import DataBundle
    from ltfast.models import MaskedAutoencoder


class PretrainingStage(Stage):
    """Trains a masked autoencoder; the labels are ignored."""

    evaluated = False
    epochs_setting = "pretrain_epochs"

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        autoencoder: "MaskedAutoencoder",
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            autoencoder: the network; all of its parameters are trained.
        """
        super().__init__(name, batches, optimisation)
        self.autoencoder = autoencoder

    def optimizer(self) -> Optimizer:
        return self.optimisation.make_optimizer(self.autoencoder, betas=(0.9, 0.95), filter_bias_and_bn=True)

    def forward(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, _ = batch
        return self.autoencoder(images), {}


class FineTuningStage(SupervisedStage):
    """Trains a network on mixed images and targets, which `prepare` makes."""

    network: "VisionTransformer"
    onward = "--init {run} --pretrain-epochs 0 --epochs {epochs}"  # fine-tunes the pre-trained encoder again

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        network: "VisionTransformer",
        loss: nn.Module,
        mix: "Mixup | None",
        label_smoothing: float,
        layer_decay: float,
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            network: the network with its head.
            loss: from `fused_loss`; takes dense targets.
            mix: mixes images and makes their targets; None leaves images unchanged.
            label_smoothing: the smoothing of targets if `mix` is None.
            layer_decay: the factor of the learning rate from a block to the one before it.
        """
        super().__init__(name, batches, optimisation, network=network, loss=loss)
        self.mix = mix
        self.label_smoothing = label_smoothing
        self.layer_decay = layer_decay

    def optimizer(self) -> Optimizer:
        # of the network, not of the stage: timm identifies layers by the parameter names of its models
        return self.optimisation.make_optimizer(self.network, layer_decay=self.layer_decay, filter_bias_and_bn=True)

    def features(self, images: Tensor) -> Tensor:
        return self.network.forward_head(self.network.forward_features(images), pre_logits=True)

    def prepare(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        from timm.data.mixup import mixup_target

        images, labels = batch
        if self.mix is None:
            return images, mixup_target(labels, self.network.num_classes, smoothing=self.label_smoothing)
        return self.mix(images.clone(), labels)  # it mixes in place


def make_soft_target_loss(settings: Settings, class_counts: Sequence[int]) -> nn.Module:
    """The loss that `--loss` names, which takes scores and dense targets.

    Raises:
        ValueError: the name is unknown, or a class has no images.
    """
    from ltfast.losses import BalancedBCELoss

    if settings.loss == "balanced_bce":
        return BalancedBCELoss(class_counts, tau=settings.tau)
    if settings.loss == "bce":
        return BalancedBCELoss(class_counts, tau=0.0)
    if settings.loss == "cross_entropy":
        return nn.CrossEntropyLoss(loss_weight(settings, class_counts))
    raise SettingError("loss", "balanced_bce, bce or cross_entropy", settings.loss)


def build(
    settings: Settings,
    bundle: "DataBundle",
    context: BuildContext,
) -> Plan:
    """The plan with both stages, or with the second one only. The initial weights come from torch's global generator;
    `init` is read when the first of these stages starts.

    Raises:
        ValueError: a setting does not fit the data or the backbone.
    """
    # importing these takes seconds, and --help does not need them
    from timm.data import Mixup

    from ltfast.data import train_transform
    from ltfast.methods.batches import evaluation_batches, train_batches, validation_batches
    from ltfast.methods.start import initial_weights
    from ltfast.models import MaskedAutoencoder

    settings = settings.chosen(bundle)
    chosen: Any = settings  # no type says that none of these is "auto"
    size = settings.size_for(bundle)
    stages: list[Stage] = []
    autoencoder = None
    start_draw = 0
    if settings.pretrain_epochs > 0:
        autoencoder = MaskedAutoencoder(
            _transformer(settings, bundle, size, 0, drop_path=0.0),
            mask_ratio=settings.mask_ratio,
            decoder_dim=settings.decoder_dim,
            decoder_depth=settings.decoder_depth,
            decoder_heads=settings.decoder_heads,
            norm_pixels=settings.norm_pixels,
        )
        batches = train_batches(
            bundle,
            [train_transform(bundle, chosen.pretrain_augment, size)],
            batch_size=settings.pretrain_batch_size,
            context=context,
        )
        stages.append(PretrainingStage("pretrain", batches, settings.of_pretraining(), autoencoder=autoencoder))
        start_draw = batches.batches.draws_per_epoch * settings.pretrain_epochs
    batches = train_batches(
        bundle,
        [train_transform(bundle, chosen.augment, size)],
        batch_size=settings.batch_size,
        start_draw=start_draw,
        context=context,
    )
    smoothing = unless_auto(settings.label_smoothing, 0.1)
    mix = Mixup(settings.mixup, settings.cutmix, label_smoothing=smoothing, num_classes=bundle.num_classes)
    loss = make_soft_target_loss(settings, bundle.class_counts)
    network = _transformer(settings, bundle, size, bundle.num_classes, drop_path=settings.drop_path)
    stages.append(
        FineTuningStage(
            "finetune",
            batches,
            settings,
            network=network,
            loss=fused_loss(loss, context, rows=settings.batch_size, num_classes=bundle.num_classes),
            mix=mix if settings.mixes else None,
            label_smoothing=smoothing,
            layer_decay=settings.layer_decay,
        )
    )
    if autoencoder is not None:
        stages[-1].initial = partial(_continue_from, autoencoder, network)
    stages[0].initial = initial_weights(
        settings,
        bundle,
        context,
        network if autoencoder is None else autoencoder.encoder,
        network.head,
        encoder=True,
        mean_of_patches=True,
    )
    test = evaluation_batches(bundle, size, context=context)
    validation = validation_batches(bundle, size, context=context)
    return Plan(stages, test, validation=validation)


def _continue_from(autoencoder: "MaskedAutoencoder", network: "VisionTransformer") -> None:
    """Start the fine-tuning from the encoder that the first stage has trained."""
    from ltfast.models.load_backbone import load_backbone

    load_backbone(network, autoencoder.encoder.state_dict())


def _transformer(
    settings: Settings, bundle: "DataBundle", size: int, num_classes: int, *, drop_path: float
) -> "VisionTransformer":
    """The backbone, whose features are the mean of the patch tokens, with a linear head for `num_classes` classes (none
    for 0).

    Raises:
        ValueError: the backbone is not a plain vision transformer, or does not accept images of this size.
    """
    from timm.models.vision_transformer import VisionTransformer

    from ltfast.models import make_backbone

    network, _ = make_backbone(
        settings.backbone,
        in_chans=bundle.channels,
        image_size=size,
        pretrained=settings.pretrained,
        drop_path_rate=drop_path,
    )
    if type(network) is not VisionTransformer:
        raise SettingError("backbone", "a plain vision transformer of timm's", settings.backbone)
    network.reset_classifier(num_classes, "avg")
    if isinstance(network.head, nn.Linear):
        nn.init.trunc_normal_(network.head.weight, std=2e-5)  # usual for the fine-tuning of masked autoencoders
        nn.init.zeros_(network.head.bias)
    return network
