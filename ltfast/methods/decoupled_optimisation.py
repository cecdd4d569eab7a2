"""DO: Cong et al., "Decoupled Optimisation for Long-Tailed Visual Recognition", AAAI 2024.

The weights of one network are divided among groups of classes: many, medium and few. A stage for each group trains the
weights that are still free, with sampling and a loss that prefer the group. Then the weights of low importance for the
group are gradually pruned and left to the next stage, and the others are frozen. The sub-model of a stage is the
network without the weights that later stages train. All sub-models classify a test image, with weights under which two
augmented views of the image agree best.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ltfast.engine import Batches, Optimisation, Plan, Predictor, check
from ltfast.methods.context import BuildContext
from ltfast.methods.fused_classifier import classifier_loss, fused_loss
from ltfast.methods.settings import loss_weight, unless_auto
from ltfast.methods.settings.decoupled_optimisation import Settings
from ltfast.methods.supervised_stage import SupervisedStage

if TYPE_CHECKING:
    from ltfast.data import DataBundle
    from ltfast.models import SubModels

IMPORTANCE_IMAGES = 2048  # of a group, on which the importance and the accuracies of the search are measured
CANDIDATES = tuple(share / 10 for share in range(10))


class SubModelStage(SupervisedStage):
    """Trains the weights that earlier stages have left. The weights that they have kept do not change."""

    network: "SubModels"

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        network: "SubModels",
        number: int,
        loss: nn.Module,
        fresh: Callable[[], nn.Module],
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            network: has the sub-model `number`, which is trained.
            number: the number of the stage, from 1.
            loss: from `fused_loss`.
            fresh: makes a newly initialised network.
        """
        super().__init__(name, batches, optimisation, network=network, loss=loss)
        self.number = number
        self.fresh = fresh
        if number > 1:
            self.epochs_setting = "later_epochs"
            self.trains = "trains the weights that the stages before have pruned"

    def replicated(self) -> Iterable[Tensor]:
        return self.network.buffers(recurse=False)

    def start(self) -> None:
        super().start()
        if self.number > 1:
            self.network.begin(self.number, self.fresh())

    def after_backward(self) -> None:
        self.network.still_gradients_()

    def after_step(self) -> None:
        self.network.still_weights_()

    def predict(self, *views: Tensor) -> Tensor:
        return self.network(views[0])


class PruningStage(SubModelStage):
    r"""Prunes weights of low importance for the group at the start of each epoch, and trains the weights that are left.

    After epoch t of T the share pruned is :math:`\gamma (1 - (1 - t / T)^3)` (Zhu and Gupta, "To prune, or not to
    prune", 2017).
    """

    selects = False  # the share is reached in the last epoch only

    share: Tensor

    def __init__(
        self,
        name: str,
        batches: Batches,
        optimisation: Optimisation,
        *,
        images: Callable[[Sequence[int]], Iterable[Sequence[Tensor]]],
        classes: Sequence[int],
        num_classes: int,
        share: float | None,
        accumulate: int,
        **options: Any,
    ) -> None:
        """
        Args:
            name, batches, optimisation: see `Stage`.
            images: gives training images of some classes, in batches `(images, labels)`.
            classes: the classes of the group.
            num_classes: C.
            share: the share of the free weights that is pruned in the end; None searches for it.
            accumulate: batches per optimiser step; the importance is measured on as many images at a time.
            options: see `SubModelStage`.
        """
        super().__init__(name, batches, optimisation, **options)
        self.images = images
        self.classes = classes
        self.num_classes = num_classes
        self.given = share
        self.accumulate = accumulate
        self.epochs_setting = "prune_epochs"
        pruned = "a searched share (10 to 90 %)" if share is None else f"{100 * share:g} %"
        self.trains = f"prunes {pruned} of its weights, and trains the others"
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))

    def start(self) -> None:
        self.share.fill_(self._searched() if self.given is None else self.given)

    def start_epoch(self) -> None:
        left = 1 - (self.epoch + 1) / self.optimisation.epochs
        self.network.prune(self._importance(), float(self.share) * (1 - left**3))

    def _importance(self) -> list[Tensor]:
        from ltfast.engine.parameter_importance import parameter_importance

        self.network.eval()
        return parameter_importance(
            self.network.features,
            list(self.network.weights.values()),
            self.images(self.classes),
            partial(classifier_loss, self.loss, self.network.head),
            accumulate=self.accumulate,
        )

    def _searched(self) -> float:
        """The largest share before the steepest fall of the accuracy, without training in between. The accuracy is that
        on training images of all classes: on one group alone, a network that always predicts it would score well."""
        importance = self._importance()
        accuracy = [self._accuracy(importance, share) for share in CANDIDATES]
        falls = [before - after for before, after in pairwise(accuracy[1:])]
        return CANDIDATES[1 + falls.index(max(falls))] if max(falls) > 0 else CANDIDATES[-1]

    @torch.no_grad()
    def _accuracy(self, importance: Sequence[Tensor], share: float) -> float:
        from accelerate.utils import reduce, send_to_device

        counts = torch.zeros(2, device=self.share.device)
        with self.network.pruned(importance, share):
            for batch in self.images(range(self.num_classes)):
                images, labels = send_to_device(batch, self.share.device)
                hits = self.network(images).argmax(1) == labels
                counts += torch.stack([hits.sum(), labels.new_tensor(len(labels))])
        correct, total = reduce(counts, "sum").tolist()
        return correct / total


class Aggregation(Predictor):
    """Combines all sub-models: predicts the logarithm of the weighted mean of their probabilities."""

    members: Tensor
    group_weights: Tensor

    def __init__(
        self, network: "SubModels", groups: Sequence[Sequence[int]], kind: Literal["instance", "group", "average"]
    ) -> None:
        """
        Args:
            network: the network after all of its stages.
            groups: the classes of each group.
            kind: `Settings.aggregate`. A test image belongs to the group of the class that equal weights predict.
        """
        super().__init__()
        self.network = network
        self.kind = kind
        self.adapts = kind == "group"
        self.views = 3 if kind == "instance" else 1
        members = torch.zeros(sum(map(len, groups)), dtype=torch.int64)
        for number, classes in enumerate(groups):
            members[list(classes)] = number
        self.register_buffer("members", members)
        equal = torch.full((len(groups), network.stages), 1 / network.stages)
        self.register_buffer("group_weights", equal, persistent=False)

    def adapt(self, views: Iterable[Sequence[Tensor]]) -> None:
        from accelerate.utils import reduce

        from ltfast.models.aggregation import aggregation_weights, agreement

        if not self.adapts:
            return
        models, groups = self.network.stages, len(self.group_weights)
        sums = torch.zeros(groups, models, models, device=self.members.device)
        counts = torch.zeros(groups, device=self.members.device)
        for image, first, second in views:
            group = self._group(self._probabilities(image))
            sums.index_add_(0, group, agreement(self._probabilities(first), self._probabilities(second)).float())
            counts += torch.bincount(group, minlength=groups)
        sums, counts = reduce(sums, "sum"), reduce(counts, "sum")
        self.group_weights = aggregation_weights(sums / counts.clamp(min=1)[:, None, None])

    @torch.no_grad()
    def weights(self, image: Tensor, *augmented: Tensor) -> Tensor:
        """The weights of the sub-models, (B, T). The kind `instance` takes two augmented views of the image."""
        from ltfast.models.aggregation import aggregation_weights, agreement

        if self.kind == "instance":
            first, second = map(self._probabilities, augmented)
            return aggregation_weights(agreement(first, second))
        if self.kind == "group":
            return self.group_weights[self._group(self._probabilities(image))]
        return torch.full((image.shape[0], self.network.stages), 1 / self.network.stages, device=image.device)

    def predict(self, *views: Tensor) -> Tensor:
        weights = self.weights(*views)
        mixture = (weights[..., None] * self._probabilities(views[0])).sum(1)
        return mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()

    def _probabilities(self, images: Tensor) -> Tensor:
        return self.network.scores(images).float().softmax(-1)

    def _group(self, probabilities: Tensor) -> Tensor:
        return self.members[probabilities.mean(1).argmax(1)]


def build(
    settings: Settings,
    bundle: "DataBundle",
    context: BuildContext,
) -> Plan:
    """The plan, with a stage and a pruning stage for each group that has classes, except that the last group is not
    pruned. Its predictor combines all sub-models.

    Raises:
        ValueError: a setting does not fit the data.
    """
    # importing these takes seconds, and --help does not need them
    from ltfast.data import class_groups, train_transform
    from ltfast.losses import CompensationLoss
    from ltfast.methods.batches import class_batches, evaluation_batches, train_batches, validation_batches
    from ltfast.methods.check_batch_norm import check_batch_norm
    from ltfast.methods.start import initial_weights
    from ltfast.models import ImageClassifier, SubModels

    settings = settings.chosen(bundle)
    ema = context.run.ema
    check(ema is None, "ema", "none with method do, which prunes weights to zero: their average would not be zero", ema)
    size = settings.size_for(bundle)
    counts = bundle.class_counts

    def network(pretrained: bool) -> nn.Module:
        return ImageClassifier(
            settings.backbone, bundle.num_classes, in_chans=bundle.channels, image_size=size, pretrained=pretrained
        )

    every = class_groups(counts, settings.minima)
    present = [name for name, classes in every.items() if classes]  # largest classes first
    order = unless_auto(settings.order, tuple(range(len(every))))
    names = [name for name in (list(every)[i] for i in order) if name in present]
    shares: Sequence[float | None] = [None] * (len(names) - 1) if settings.prune == "auto" else settings.prune
    expected = f"{len(names) - 1}, one for each group with classes but the last ({', '.join(names)})"
    check(len(shares) == len(names) - 1, "prune", expected, settings.prune)
    if len(names) == 1:
        warnings.warn(
            f"all classes are in one group ({names[0]}), so method do is plain training: --imbalance makes a long "
            "tail, --group-minima sets other borders",
            stacklevel=2,
        )
    first: Any = network(settings.pretrained)
    together = context.normalised_together(settings.batch_size)
    check_batch_norm(first, (bundle.channels, size, size), together, "batch_size")
    sub_models = SubModels(first, len(names))
    transform = train_transform(bundle, settings.augment, size)

    def images(classes: Sequence[int]) -> Iterable[Sequence[Tensor]]:
        return class_batches(
            bundle, classes, size, most=IMPORTANCE_IMAGES, batch_size=settings.batch_size, context=context
        )

    initial = initial_weights(settings, bundle, context, first.backbone, first.head)
    stages: list[SubModelStage] = []
    start_draw = 0
    for number, name in enumerate(names):
        classes = every[name]
        # the paper's three kinds: the long tail itself, a preferred group, the reversed tail
        kind = 1 if name == present[0] else 3 if name == present[-1] else 2
        preferred: dict[str, Any] = {"stage": kind, "rho": settings.rho, "preferred": classes if kind == 2 else None}
        plain = kind == 2 and settings.sampler != "group_preferred"
        of_loss: dict[str, Any] = {
            "weight": loss_weight(settings, counts),
            "label_smoothing": unless_auto(settings.label_smoothing, 0.0),
        }
        compensates = settings.loss == "compensation"
        loss = CompensationLoss(counts, **preferred, **of_loss) if compensates else nn.CrossEntropyLoss(**of_loss)
        options: dict[str, Any] = {
            "network": sub_models,
            "number": number + 1,
            "loss": fused_loss(loss, context, rows=settings.batch_size, num_classes=bundle.num_classes),
            "fresh": lambda: network(False),
        }
        last = number + 1 == len(names)
        for pruning in (False,) if last else (False, True):
            optimisation = settings.of_pruning() if pruning else settings.of_stage(number)
            batches = train_batches(
                bundle,
                [transform],
                batch_size=settings.batch_size,
                sampler=settings.sampler if plain else "group_preferred",
                sampler_options={} if plain else preferred,
                start_draw=start_draw,
                context=context,
            )
            start_draw += batches.batches.draws_per_epoch * optimisation.epochs
            if not pruning:
                stages.append(SubModelStage(name, batches, optimisation, **options))
                stages[-1].initial = initial if number == 0 else None
                continue

            stages.append(
                PruningStage(
                    f"{name}_pruned",
                    batches,
                    optimisation,
                    images=images,
                    classes=classes,
                    num_classes=bundle.num_classes,
                    share=shares[number],
                    accumulate=context.run.accumulate,
                    **options,
                )
            )
    test = evaluation_batches(bundle, size, augmented=[transform, transform], context=context)
    validation = validation_batches(bundle, size, augmented=[transform, transform], context=context)
    final = Aggregation(sub_models, list(every.values()), settings.aggregate)
    return Plan(stages, test, final, validation=validation)
