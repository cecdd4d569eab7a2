"""LPT: Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023.

Prompts adapt a frozen vision transformer to the data. The first phase trains prompts that all images share, and a
cosine classifier. In the second phase, each image gets group prompts from a pool: its features from the first phase
select the nearest keys. Half of a batch is sampled class-balanced and the other half as the data are distributed; the
weight of the latter half decreases. The checkpoint of a finished run does not contain the backbone, which comes from
timm or from a LiVT run.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltfast.engine import Adapted, Batches, Optimisation, Plan, Stage, check
from ltfast.methods.context import BuildContext
from ltfast.methods.fused_classifier import fused_loss, loss_inputs
from ltfast.methods.settings import unless_auto
from ltfast.methods.settings.lpt import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.models import PromptedClassifier


class SharedPromptStage(SupervisedStage):
    """The first phase, which trains shared prompts and the classifier."""

    network: "PromptedClassifier"

    def features(self, images: Tensor) -> Tensor:
        return self.network.query(images)

    def trained(self) -> Iterable[nn.Parameter]:
        yield self.network.transformer.prompts
        yield from self.network.head.parameters()

    def losses(self) -> Sequence[nn.Module]:
        return []  # the times of a run are those of the second phase


class GroupPromptStage(Stage):
    """The second phase, which trains group prompts, their keys and the classifier.

    The loss is the sum of the class-balanced half's loss, `eta (E - e) / E` times the other half's loss in epoch e of
    E, and one minus the mean cosine between queries and the keys that they match. The keys are initialised with the
    queries of some images. With random keys, features of nearly equal directions would all match the same keys, and
    only those would learn.
    """

    share: Tensor  # the weight of the other half's loss in this epoch
    onward = None  # prompts start anew in each run
    epochs_setting = "group_epochs"

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        network: "PromptedClassifier",
        balanced: nn.Module,
        instance: nn.Module,
        eta: float,
        first: Batches,
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`; the two halves of a batch alternate, see `DualSampler`.
            network: has the first phase's prompts.
            balanced, instance: the losses of the halves, from `fused_loss`.
            eta: see above.
            first: its first batch has the images that initialise the keys, the same in every process.
        """
        super().__init__(name, batches, optimisation)
        self.network = network
        self.balanced, self.instance = balanced, instance
        self.eta = eta
        self.first = first
        self.register_buffer("share", torch.tensor(eta), persistent=False)

    def start(self) -> None:
        from accelerate.utils import send_to_device

        keys = self.network.pool.keys
        images, _ = self.first.finish(send_to_device(next(iter(self.first.epoch(0, 0))), keys.device))
        self.first.close()
        self.eval()
        with torch.no_grad():
            queries = self.network.query(images)
            keys[: len(queries)] = queries
        self.network.group_norm.load_state_dict(self.network.norm.state_dict())

    def train(self, mode: bool = True) -> "GroupPromptStage":
        super().train(mode)
        self.network.norm.eval()  # the queries stay those of the first phase
        self.share.fill_(self.eta * (1 - self.epoch / self.optimisation.epochs))
        return self

    def trained(self) -> Iterable[nn.Parameter]:
        yield from self.network.pool.parameters()
        yield from self.network.head.parameters()

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        features, _, cosines = self.network.grouped_features(images)
        rows, *layer = loss_inputs(self.balanced, self.network.head, features)  # both losses take the same
        balanced = self.balanced(rows[0::2], *layer, labels[0::2])
        instance = self.instance(rows[1::2], *layer, labels[1::2])
        matching = 1 - cosines.mean()
        parts = {"balanced": balanced, "instance": instance, "matching": matching}
        return balanced + self.share * instance + matching, parts

    def predict(self, *views: Tensor) -> Tensor:
        (images,) = views
        return self.network.grouped(images)[0]

    def losses(self) -> Sequence[nn.Module]:
        return [self.balanced, self.instance]


def build(
    settings: Settings,
    bundle: "DataBundle",
    context: BuildContext,
) -> Plan:
    """The plan with both phases. The initial weights come from torch's global generator; `init` is read when the first
    phase starts.

    Raises:
        ValueError: a setting does not fit the data or the backbone.
    """
    # importing these takes seconds, and --help does not need them
    from ltfast.data import train_transform
    from ltfast.losses import AGCLLoss
    from ltfast.methods.batches import evaluation_batches, train_batches, validation_batches
    from ltfast.methods.start import initial_weights
    from ltfast.models import PromptedClassifier

    settings = settings.chosen(bundle)
    size = settings.size_for(bundle)
    counts = bundle.class_counts
    network = PromptedClassifier(
        settings.backbone,
        bundle.num_classes,
        length=settings.prompt_length,
        pool_size=settings.pool_size,
        group_length=settings.group_length,
        group_blocks=None if settings.group_blocks == "auto" else settings.group_blocks,
        matches=settings.matches,
        in_chans=bundle.channels,
        image_size=size,
        pretrained=settings.pretrained,
        # a masked autoencoder does not train the class token, and the means of its patch tokens are far from zero;
        # which method has trained the backbone is known only when the first phase starts
        global_pool=None if settings.init is None else "avg",
        standardise=settings.init is not None,
    )

    initial = initial_weights(settings, bundle, context, network.transformer.backbone, None, encoder=True)

    def check_trained() -> None:
        check(
            settings.pretrained or initial is not None,
            "backbone",
            "trained weights, from --pretrained, --init or --weights, for prompts to adapt",
            "new ones",
        )

    def loss(rows: int, *, gamma_pos: float = 0.0, gamma_neg: float) -> nn.Module:
        smoothing = unless_auto(settings.label_smoothing, 0.1)
        with_scores = AGCLLoss(counts, gamma_pos=gamma_pos, gamma_neg=gamma_neg, label_smoothing=smoothing)
        return fused_loss(with_scores, context, rows=rows, num_classes=bundle.num_classes)

    half = settings.batch_size // 2
    transforms = [train_transform(bundle, settings.augment, size)]
    first_batches = train_batches(
        bundle, transforms, batch_size=settings.batch_size, sampler=settings.sampler, context=context
    )
    first = SharedPromptStage(
        "shared",
        first_batches,
        settings,
        network=network,
        loss=loss(settings.batch_size, gamma_neg=4.0),
    )
    first.initial = check_trained if initial is None else initial
    second_batches = train_batches(
        bundle,
        transforms,
        batch_size=settings.batch_size,
        sampler="dual",
        start_draw=first_batches.batches.draws_per_epoch * settings.epochs,
        context=context,
    )
    second = GroupPromptStage(
        "group",
        second_batches,
        settings.of_group_phase(),
        network=network,
        balanced=loss(half, gamma_neg=4.0),
        instance=loss(half, gamma_pos=0.5, gamma_neg=8.0),
        eta=settings.eta,
        first=train_batches(
            bundle,
            transforms,
            batch_size=min(settings.pool_size, len(bundle.train)),
            sampler="class_balanced",
            context=BuildContext(context.run),  # all processes use the same images, and start with the same keys
        ),
    )
    first.score_scale = second.score_scale = AGCLLoss(counts).scale
    test = evaluation_batches(bundle, size, context=context)
    validation = validation_batches(bundle, size, context=context)
    recall = check_trained if initial is None else initial.load
    # a file may be lost: then the checkpoint keeps its weights
    adapted = None if settings.weights is not None else Adapted(network, network.transformer.backbone, recall)
    return Plan([first, second], test, validation=validation, adapted=adapted)
