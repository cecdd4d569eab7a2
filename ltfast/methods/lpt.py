"""LPT: Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023.

A frozen vision transformer learns by prompts. In the first phase prompts that all images share, and a cosine
classifier, adapt it to the data. In the second, what the first sees in an image chooses group prompts for it from a
pool, by the nearest keys; a batch is half class-balanced and half as the data are, and the latter half counts less and
less. The checkpoint of a finished run has no backbone: it is timm's, or that of a LiVT run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ltfast.engine import Adapted, Batches, Optimisation, Plan, Stage, check, option
from ltfast.methods.ce import SupervisedStage
from ltfast.methods.context import BuildContext
from ltfast.methods.encoders import load_encoder, pretrained_encoder
from ltfast.methods.settings import BackboneSettings, unless_auto

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.models import PromptedClassifier


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
    """Options of `--method lpt`; those without a prefix are the first phase's, and the second's unless it has its own.

    Raises:
        ValueError: a setting out of its range.
    """

    backbone: str = option(
        "auto", "a vision transformer of timm's; auto: vit_digits up to 16 pixels, vit_tiny_cifar up to 64, "
        "vit_base_patch16_224 above"
    )  # fmt: skip
    lr: float = option(0.02, "peak learning rate, as it is: the paper's is 0.002 to 0.02 for a batch of 256")
    weight_decay: float = option(1e-4, "weight decay, on prompts, keys and classifier")
    augment: Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "randaugment"] = option(
        "basic", "augmentation of training images; basic is a shifted crop, cifar flips too"
    )
    sampler: Literal["instance", "class_balanced", "square_root", "effective_number"] = option(
        "class_balanced", "which images the first phase draws: each once, or by class"
    )
    init: str | None = option(
        None, "folder or checkpoint of a LiVT run: the encoder it has pre-trained is the backbone"
    )
    prompt_length: int = option(10, "shared prompts of each block")
    group_epochs: int | Literal["auto"] = option(
        "auto", "epochs of the second phase, of twice the images; auto: --epochs"
    )
    group_lr: float | Literal["auto"] = option("auto", "its learning rate; auto: --lr")
    group_length: int = option(10, "group prompts of a block and key")
    group_blocks: int | Literal["auto"] = option(
        "auto", "the last so many blocks have group prompts; auto: half of them"
    )
    pool_size: int = option(20, "keys in the pool of group prompts")
    matches: int = option(2, "keys that an image chooses; it gets the mean of their prompts")
    eta: float = option(0.5, "weight of the half that is sampled as the data are, at first; it falls to 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not (self.pretrained and self.init), "init", "none with --pretrained", self.init)
        for name in ("prompt_length", "group_length", "pool_size"):
            check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        check(1 <= self.matches <= self.pool_size, "matches", f"1 to {self.pool_size}, the pool's size", self.matches)
        check(
            self.batch_size % 2 == 0, "batch_size", "an even number: half of a batch is class-balanced", self.batch_size
        )
        epochs, blocks = self.group_epochs, self.group_blocks
        check(epochs == "auto" or epochs >= 1, "group_epochs", "at least 1, or auto", epochs)
        check(blocks == "auto" or blocks >= 1, "group_blocks", "at least 1, or auto", blocks)
        check(self.group_lr == "auto" or self.group_lr > 0, "group_lr", "a positive number, or auto", self.group_lr)
        check(self.eta >= 0, "eta", "at least 0", self.eta)

    def chosen(self, bundle: "DataBundle") -> "Settings":
        from ltfast.models import default_vit

        size = self.size_for(bundle)
        return replace(
            self,
            image_size=size,
            backbone=unless_auto(self.backbone, default_vit(size)),
            group_epochs=unless_auto(self.group_epochs, self.epochs),
            group_lr=unless_auto(self.group_lr, self.lr),
        )

    def of_group_phase(self) -> Optimisation:
        """How the second phase is optimised."""
        first = Optimisation(**{name: getattr(self, name) for name in Optimisation.__dataclass_fields__})
        epochs = unless_auto(self.group_epochs, self.epochs)
        return replace(
            first,
            epochs=epochs,
            lr=unless_auto(self.group_lr, self.lr),
            warmup_epochs=min(self.warmup_epochs, epochs),
        )


class SharedStage(SupervisedStage):
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


class GroupStage(Stage):
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

    def train(self, mode: bool = True) -> "GroupStage":
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
    first = SharedStage(
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
    second = GroupStage(
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
            context=context,
        ),
    )
    test = evaluation_batches(bundle, size, context=context)
    return Plan([first, second], test, adapted=Adapted(network, network.transformer.backbone, recall))
