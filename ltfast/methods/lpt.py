"""LPT: Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023.

A frozen vision transformer learns by prompts. In the first phase prompts that all images share, and a cosine
classifier, adapt it to the data. In the second, what the first sees in an image chooses group prompts for it from a
pool, by the nearest keys; a batch is half class-balanced and half as the data are, and the latter half counts less and
less. The checkpoint of a finished run has no backbone: it is timm's, or that of a LiVT run.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltfast.engine import Adapted, Batches, Optimisation, Plan, Stage, check
from ltfast.methods.context import BuildContext
from ltfast.methods.encoders import load_encoder, pretrained_encoder
from ltfast.methods.settings.lpt import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.models import PromptedClassifier


class SharedPromptStage(SupervisedStage):
    """The first phase: shared prompts and the classifier."""

    network: "PromptedClassifier"

    def __init__(self, *arguments: Any, recall: Callable[[], None], **options: Any) -> None:
        """
        Args:
            arguments, options: see `SupervisedStage`.
            recall: puts the backbone's weights into it, when the stage starts.
        """
        super().__init__(*arguments, **options)
        self.recall = recall

    def start(self) -> None:
        self.recall()

    def trained(self) -> Iterable[nn.Parameter]:
        yield self.network.transformer.prompts
        yield from self.network.head.parameters()

    def losses(self) -> Sequence[nn.Module]:
        return []  # the second phase's are the method's


class GroupPromptStage(Stage):
    """The second phase: group prompts, their keys and the classifier.

    The loss is the class-balanced half's, and `eta (E - e) / E` times the other half's in epoch e of E, and one minus
    the mean cosine between queries and the keys that they match. The keys start as queries of some images: from random
    keys, features that point nearly the same way would all choose the same ones, and only those would learn.
    """

    share: Tensor  # of the other half's loss in this epoch

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
            name, batches, optimisation: see `Stage`; a batch's images are from either half in turn, see `DualSampler`.
            network: with the first phase's prompts.
            balanced, instance: losses of the halves.
            eta: see above.
            first: its first batch has the images that the keys start from, the same in every process.
        """
        super().__init__(name, batches, optimisation)
        self.network = network
        self.balanced, self.instance = balanced, instance
        self.eta = eta
        self.first = first
        self.register_buffer("share", torch.tensor(eta), persistent=False)

    def start(self) -> None:
        images, _ = next(iter(self.first.epoch(0, 0)))
        self.first.close()
        keys = self.network.pool.keys
        self.eval()
        with torch.no_grad():
            queries = self.network.query(images.to(keys.device))
            keys[: len(queries)] = queries
        self.network.group_norm.load_state_dict(self.network.norm.state_dict())

    def train(self, mode: bool = True) -> "GroupPromptStage":
        super().train(mode)
        self.network.norm.eval()  # queries stay as the first phase has them
        self.share.fill_(self.eta * (1 - self.epoch / self.optimisation.epochs))
        return self

    def trained(self) -> Iterable[nn.Parameter]:
        yield from self.network.pool.parameters()
        yield from self.network.head.parameters()

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        scores, _, cosines = self.network.grouped(images)
        balanced = self.balanced(scores[0::2], labels[0::2])
        instance = self.instance(scores[1::2], labels[1::2])
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
    """Both phases. Their initial weights come from torch's global generator; `init` is read when the first starts.

    Raises:
        ValueError: a setting that does not fit the data or the backbone.
    """
    # seconds to import, and --help needs none of it
    from ltfast.data import train_transform
    from ltfast.losses import AGCLLoss
    from ltfast.methods.batches import evaluation_batches, train_batches
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
        # a masked autoencoder's class token learns nothing, and its patches' means lie far from zero
        global_pool=None if settings.init is None else "avg",
        standardise=settings.init is not None,
    )

    def recall() -> None:
        trained = settings.pretrained or settings.init is not None
        check(trained, "backbone", "trained weights, from --pretrained or --init, for prompts to adapt", "new ones")
        if settings.init is not None:
            load_encoder(network.transformer.backbone, pretrained_encoder(Path(settings.init)))

    transforms = [train_transform(bundle, settings.augment, size)]
    first_batches = train_batches(
        bundle, transforms, batch_size=settings.batch_size, sampler=settings.sampler, context=context
    )
    first = SharedPromptStage(
        "shared",
        first_batches,
        settings,
        network=network,
        loss=AGCLLoss(counts, gamma_neg=4.0),
        recall=recall,
    )
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
        balanced=AGCLLoss(counts, gamma_neg=4.0),
        instance=AGCLLoss(counts, gamma_pos=0.5, gamma_neg=8.0),
        eta=settings.eta,
        first=train_batches(
            bundle,
            transforms,
            batch_size=min(settings.pool_size, len(bundle.train)),
            sampler="class_balanced",
            context=BuildContext(context.run),  # all processes see the same images, and start with the same keys
        ),
    )
    test = evaluation_batches(bundle, size, context=context)
    return Plan([first, second], test, adapted=Adapted(network, network.transformer.backbone, recall))
