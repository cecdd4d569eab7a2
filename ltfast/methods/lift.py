"""LIFT: Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024.

Light fine-tuning of a vision transformer: its weights are frozen, and adapters in its blocks and a cosine classifier
are trained with the logit-adjusted loss. The classifier starts from the features of the training images. The checkpoint
of a finished run does not contain the frozen weights, which come from timm or from another run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.engine import Adapted, Batches, Optimisation, Plan, check
from ltfast.methods.classifier_loss import make_loss
from ltfast.methods.context import BuildContext
from ltfast.methods.fused_classifier import classifier_loss, fused_loss
from ltfast.methods.settings.lift import Settings
from ltfast.methods.supervised_stage import SupervisedStage
from ltfast.terminal import say

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.methods.frozen_images import FrozenImages
    from ltfast.models import AdaptedClassifier


class AdaptedStage(SupervisedStage):
    """Trains adapters and classifier."""

    network: "AdaptedClassifier"
    onward = None  # adapters start anew in each run

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        network: "AdaptedClassifier",
        loss: nn.Module,
        cached: bool,
        first_head: Callable[[], None],
        note: str,
    ) -> None:
        """
        Args:
            name, batches, optimisation, network, loss: see `SupervisedStage`.
            cached: whether the batches have what the frozen part computes from the images, instead of the images.
            first_head: sets the weights with which the classifier starts.
            note: printed at the start; empty prints nothing.
        """
        super().__init__(name, batches, optimisation, network=network, loss=loss)
        self.cached = cached
        self.first_head = first_head
        self.note = note
        self.trains = _trained_words(self)

    def trained(self) -> Iterable[nn.Parameter]:
        yield from self.network.transformer.trained()
        yield from self.network.head.parameters()
        if self.network.log_scale is not None:
            yield self.network.log_scale

    def start(self) -> None:
        super().start()
        if self.note:
            say(self.note)
        self.first_head()

    def forward(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, labels = batch
        features = self.network.features_of_frozen(inputs) if self.cached else self.network.features(inputs)
        return classifier_loss(self.loss, self.network.head, features, labels, scale=self.network.scale), {}

    def predict(self, *views: Tensor) -> Tensor:
        (inputs,) = views
        if inputs.dim() < 4:  # what the frozen part computed from the images, see `FrozenShare`
            return self.network.scores(self.network.features_of_frozen(inputs))
        return self.network(inputs)


def _trained_words(stage: AdaptedStage) -> str:
    """What a stage trains, for the printed plan."""
    number = sum(parameter.numel() for parameter in stage.trained())
    transformer = stage.network.transformer
    depth, whole = len(transformer.backbone.blocks), sum(p.numel() for p in transformer.backbone.parameters())
    if stage.network.only_features:
        what = "the classifier"
    else:
        what = f"{transformer.adapter} in {depth - transformer.first} of {depth} blocks, and the classifier"
    return f"trains {number:,} parameters ({what}; the transformer has {whole:,})"


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The mean feature of each class, divided by its length.

    Args:
        features: (N, D).
        labels: (N,) int64; each class has at least one.
        num_classes: number of classes C.

    Returns:
        (C, D).
    """
    from ltfast.ops import class_sums

    sums, _ = class_sums(features, labels, num_classes)
    return F.normalize(sums, dim=-1).to(features.dtype)


def linear_probe(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The weights of each class in a logistic regression with class weights, divided by their length; at most 100 steps
    of L-BFGS, as in the published code.

    Args:
        features: (N, D).
        labels: (N,) int64; each class has at least one.
        num_classes: number of classes C.

    Returns:
        (C, D).
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(class_weight="balanced", max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is only a start
        probe.fit(features.cpu().numpy(), labels.cpu().numpy())
    weights = torch.from_numpy(probe.coef_).to(features)
    if num_classes == 2:  # one row, for the second class
        weights = torch.cat([-weights, weights])
    return F.normalize(weights, dim=-1)


HEADS: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {"class_mean": class_means, "linear_probe": linear_probe}


def build(
    settings: Settings,
    bundle: "DataBundle",
    context: BuildContext,
) -> Plan:
    """The plan with its one stage. The initial weights come from torch's global generator; `init` is read when the
    stage starts.

    Raises:
        ValueError: a setting does not fit the data or the backbone.
    """
    # importing these takes seconds, and --help does not need them
    from ltfast.data import train_transform
    from ltfast.methods.batches import evaluation_batches, train_batches, validation_batches
    from ltfast.methods.frozen_images import FrozenBatches, FrozenShare
    from ltfast.methods.start import initial_weights
    from ltfast.models import AdaptedClassifier

    settings = settings.chosen(bundle)
    size = settings.size_for(bundle)
    width, blocks = settings.adapter_width, settings.adapter_blocks
    network = AdaptedClassifier(
        settings.backbone,
        bundle.num_classes,
        adapter=settings.adapter,
        width=None if width == "auto" else width,
        blocks=None if blocks == "auto" else blocks,
        scale=settings.scale,
        in_chans=bundle.channels,
        image_size=size,
        pretrained=settings.pretrained,
        # as for prompts: see method lpt
        global_pool=None if settings.init is None else "avg",
        standardise=settings.init is not None,
    )
    backbone = network.transformer.backbone
    initial = initial_weights(settings, bundle, context, backbone, None, encoder=True)

    def check_trained() -> None:
        check(
            settings.pretrained or initial is not None,
            "backbone",
            "trained weights, from --pretrained, --init or --weights, for adapters to adapt",
            "new ones",
        )

    batches = train_batches(
        bundle,
        [train_transform(bundle, settings.augment, size)],
        batch_size=settings.batch_size,
        sampler=settings.sampler,
        context=context,
    )
    test: Any = evaluation_batches(bundle, size, context=context)
    validation: Any = validation_batches(bundle, size, context=context)
    frozen, why = _frozen_images(settings, bundle, size, network, context)
    training: Batches = batches
    if frozen is not None:
        training = FrozenBatches(frozen, batches.batches)
        test = FrozenShare(frozen.of(bundle.test), test, frozen)
        if bundle.validation is not None:
            validation = FrozenShare(frozen.of(bundle.validation), validation, frozen)
    loss = make_loss(settings, bundle.class_counts)
    stage = AdaptedStage(
        "adapt",
        training,
        settings,
        network=network,
        loss=fused_loss(loss, context, rows=settings.batch_size, num_classes=bundle.num_classes),
        cached=frozen is not None,
        first_head=lambda: _start_head(settings, bundle, size, network, context, frozen),
        note=f"the outputs of the frozen blocks are computed in each epoch: {why}" if why and context.rank == 0 else "",
    )
    stage.initial = check_trained if initial is None else initial
    recall = check_trained if initial is None else initial.load
    # a file may be lost: then the checkpoint keeps its weights
    adapted = None if settings.weights is not None else Adapted(network, backbone, recall, list(stage.trained()))
    return Plan([stage], test, validation=validation, adapted=adapted)


def _start_head(
    settings: Settings,
    bundle: "DataBundle",
    size: int,
    network: "AdaptedClassifier",
    context: BuildContext,
    frozen: "FrozenImages | None",
) -> None:
    """Set the classifier's weights from texts; or from the features of all training images without adapters, which give
    the statistics of the standardisation too."""
    from ltfast.data import eval_transform
    from ltfast.methods.class_text import text_head
    from ltfast.methods.frozen_images import all_features

    if settings.head_init == "random":
        return
    backbone, head = network.transformer.backbone, network.head
    if settings.class_text is not None:
        with torch.no_grad():
            head.weight.copy_(text_head(settings.class_text, settings, bundle, head.in_features))
        return
    if frozen is not None and network.only_features:
        frozen.fill()
        features = frozen.rows(range(len(bundle.train))).to(head.weight.device)
    else:
        transform = eval_transform(bundle, size)
        features = all_features(backbone, bundle.train, transform, head.in_features, context=context)
    labels = bundle.train.labels.to(features.device)
    with torch.no_grad():
        if not isinstance(network.norm, nn.Identity):  # BatchNorm of one process or of all
            variance, mean = torch.var_mean(features, 0)
            network.norm.load_state_dict({"running_mean": mean, "running_var": variance}, strict=False)
            features = network.norm.eval()(features)
        head.weight.copy_(HEADS[settings.head_init](features, labels, bundle.num_classes))


def _frozen_images(
    settings: Settings, bundle: "DataBundle", size: int, network: "AdaptedClassifier", context: BuildContext
) -> "tuple[FrozenImages | None, str]":
    """The outputs of the frozen part for the training images, if they are the same in each epoch and save work; or None
    and the reason why they are not kept, which is empty where nothing could be kept."""
    from ltfast.data import ArrayDataset, FileDataset, eval_transform
    from ltfast.files import user_cache
    from ltfast.methods.frozen_images import GIB, FrozenImages, bytes_of

    transformer = network.transformer
    if settings.augment != "none" or settings.cache_gib == 0 or transformer.first == 0:
        return None, ""
    folder = user_cache()
    if folder is None:
        return None, "there is no folder of the user's cache (LTFAST_CACHE gives one)"
    if not isinstance(bundle.train, ArrayDataset | FileDataset):
        return None, "images of this source cannot be recognised in another run"
    shape = network.eval().frozen(torch.zeros(1, bundle.channels, size, size)).shape[1:]
    if (needed := bytes_of(bundle.train, shape)) > settings.cache_gib * GIB:
        return None, f"they take {needed / GIB:.3g} GiB, and --cache-gib is {settings.cache_gib:g}"
    trained = {id(parameter) for parameter in transformer.trained()}

    def weights() -> dict[str, Tensor]:
        state = transformer.backbone.state_dict(keep_vars=True)
        return {name: value for name, value in state.items() if id(value) not in trained}

    facts = {
        "mean": bundle.mean,
        "std": bundle.std,
        "size": size,
        "channels": bundle.channels,
        "outputs": "features" if network.only_features else f"tokens before block {transformer.first}",
        "pool": transformer.backbone.global_pool,
    }
    transform = eval_transform(bundle, size)
    folder = folder / "frozen"
    return FrozenImages(network.frozen, weights, bundle.train, transform, facts, shape, folder, context), ""
