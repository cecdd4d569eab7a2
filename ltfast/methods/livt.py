"""LiVT: Xu et al., "Learning Imbalanced Data with Vision Transformers", CVPR 2023.

The method has two stages. First a vision transformer is pre-trained as a masked autoencoder on the long-tailed images
without their labels. Then it is fine-tuned with mixed images and the balanced binary cross-entropy, with lower learning
rates for its first layers. The checkpoint also keeps the pre-trained encoder, from which another run can start
(`init`).

The transformer's final normalisation precedes the mean over the tokens, as in timm; the authors' follows it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ltfast.engine import Batches, Optimisation, Plan, Stage
from ltfast.errors import SettingError
from ltfast.methods.context import BuildContext
from ltfast.methods.encoders import load_encoder, pretrained_encoder
from ltfast.methods.fused_classifier import fused_loss
from ltfast.methods.settings.livt import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from timm.data import Mixup
    from timm.models.vision_transformer import VisionTransformer

    from ltfast.data import DataBundle
    from ltfast.models import MaskedAutoencoder

Weights = Callable[[], Mapping[str, Tensor]]


class PretrainingStage(Stage):
    """Trains a masked autoencoder; the labels are ignored."""

    evaluated = False

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        autoencoder: "MaskedAutoencoder",
        initial: Weights | None,
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            autoencoder: the network; all of its parameters are trained.
            initial: called for the encoder's weights when the stage starts; None leaves them unchanged.
        """
        super().__init__(name, batches, optimisation)
        self.autoencoder = autoencoder
        self.initial = initial

    def optimizer(self) -> Optimizer:
        return self.optimisation.make_optimizer(self.autoencoder, betas=(0.9, 0.95), filter_bias_and_bn=True)

    def start(self) -> None:
        if self.initial is not None:
            load_encoder(self.autoencoder.encoder, self.initial())

    def forward(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, _ = batch
        return self.autoencoder(images), {}


class FineTuningStage(SupervisedStage):
    """Trains a network on mixed images and targets, which `prepare` makes."""

    network: "VisionTransformer"

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
        initial: Weights | None,
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            network: the network with its head.
            loss: from `fused_loss`; takes dense targets.
            mix: mixes images and makes their targets; None leaves images unchanged.
            label_smoothing: the smoothing of targets if `mix` is None.
            layer_decay: the factor of the learning rate from a block to the one before it.
            initial: called for the network's weights without the head when the stage starts; None leaves them
                unchanged.
        """
        super().__init__(name, batches, optimisation, network=network, loss=loss)
        self.mix = mix
        self.label_smoothing = label_smoothing
        self.layer_decay = layer_decay
        self.initial = initial

    def optimizer(self) -> Optimizer:
        # of the network, not of the stage: timm identifies layers by the parameter names of its models
        return self.optimisation.make_optimizer(self.network, layer_decay=self.layer_decay, filter_bias_and_bn=True)

    def start(self) -> None:
        if self.initial is not None:
            load_encoder(self.network, self.initial())

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
        return nn.CrossEntropyLoss()
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
    from ltfast.models import MaskedAutoencoder

    settings = settings.chosen(bundle)
    chosen: Any = settings  # no type says that none of these is "auto"
    size = settings.size_for(bundle)
    stages: list[Stage] = []
    initial: Weights | None = None if settings.init is None else partial(pretrained_encoder, Path(settings.init))
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
        stages.append(
            PretrainingStage("pretrain", batches, settings.of_pretraining(), autoencoder=autoencoder, initial=initial)
        )
        initial = autoencoder.encoder.state_dict
        start_draw = batches.batches.draws_per_epoch * settings.pretrain_epochs
    batches = train_batches(
        bundle,
        [train_transform(bundle, chosen.augment, size)],
        batch_size=settings.batch_size,
        start_draw=start_draw,
        context=context,
    )
    mix = Mixup(
        settings.mixup, settings.cutmix, label_smoothing=settings.label_smoothing, num_classes=bundle.num_classes
    )
    loss = make_soft_target_loss(settings, bundle.class_counts)
    stages.append(
        FineTuningStage(
            "finetune",
            batches,
            settings,
            network=_transformer(settings, bundle, size, bundle.num_classes, drop_path=settings.drop_path),
            loss=fused_loss(loss, context, rows=settings.batch_size, num_classes=bundle.num_classes),
            mix=mix if settings.mixes else None,
            label_smoothing=settings.label_smoothing,
            layer_decay=settings.layer_decay,
            initial=initial,
        )
    )
    test = evaluation_batches(bundle, size, context=context)
    validation = validation_batches(bundle, size, context=context)
    return Plan(stages, test, validation=validation)


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
