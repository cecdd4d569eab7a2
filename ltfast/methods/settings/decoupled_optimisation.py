"""The options of `--method do`."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from ltfast.engine import Optimisation, check, option
from ltfast.methods.settings.backbone import BackboneSettings, unless_auto

if TYPE_CHECKING:
    from ltfast.data import DataBundle


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
    """Options of `--method do`. Options without a prefix belong to the first stage.

    Raises:
        ValueError: a setting is out of its range.
    """

    augment: Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "randaugment"] = option(
        "basic", "augmentation of training images, and of the test images' two views"
    )
    later_epochs: int | Literal["auto"] = option("auto", "epochs of each later stage; auto: half of --epochs")
    later_lr: float | Literal["auto"] = option(
        "auto", "learning rate of the later stages, and while pruning; auto: a tenth of --lr"
    )
    group_minima: tuple[int, ...] | Literal["auto"] = option(
        "auto",
        "fewest images of a class of each group but the last, falling; a group without classes has no stage; auto: as "
        "--groups",
    )
    order: tuple[int, ...] | Literal["auto"] = option(
        "auto", "the groups, from 0 for the largest classes, as the stages take them; auto: 0,1,2,..."
    )
    rho: float = option(0.8, "share of the preferred group in the stages between the first and the last group's")
    sampler: Literal["group_preferred", "class_balanced", "instance"] = option(
        "group_preferred", "how those stages draw images: preferring their group, each class or each image as often"
    )
    loss: Literal["compensation", "cross_entropy"] = option(
        "compensation", "training loss; compensation leans to the stage's group"
    )
    prune: tuple[float, ...] | Literal["auto"] = option(
        "auto",
        "share of the free weights that is pruned after each stage but the last; auto: searched, from 0.1 to 0.9",
    )
    prune_epochs: int = option(10, "epochs of pruning: each prunes a step further and trains what is left")
    aggregate: Literal["instance", "group", "average"] = option(
        "instance", "weights of the sub-models: learned for each test image, for each group of them, or equal"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        later, minima = self.later_epochs, self.group_minima
        check(later == "auto" or later >= 1, "later_epochs", "at least 1, or auto", later)
        check(self.later_lr == "auto" or self.later_lr > 0, "later_lr", "a positive number, or auto", self.later_lr)
        falling = minima == "auto" or all(a >= b >= 1 for a, b in pairwise((*minima, 1)))
        check(len(minima) >= 1 and falling, "group_minima", "falling numbers of images, at least 1", minima)
        groups = len(self.minima) + 1
        permutation = self.order == "auto" or sorted(self.order) == list(range(groups))
        check(permutation, "order", f"each of 0 to {groups - 1} once, or auto", self.order)
        check(0 < self.rho < 1, "rho", "a number in (0, 1)", self.rho)
        check(self.prune_epochs >= 1, "prune_epochs", "at least 1", self.prune_epochs)
        fits = self.prune == "auto" or all(0 < share < 1 for share in self.prune)
        check(fits, "prune", "shares in (0, 1), one for each stage but the last, or auto", self.prune)

    def loss_takes(self) -> tuple[str, Collection[str]]:
        return self.loss, ("label_smoothing", "class_weights")

    def of_stage(self, number: int) -> Optimisation:
        """The optimisation of a stage; `number` counts from 0."""
        names = Optimisation.__dataclass_fields__
        first = Optimisation(**{name: getattr(self, name) for name in names})
        if number == 0:
            return first
        epochs = unless_auto(self.later_epochs, max(self.epochs // 2, 1))
        milestones = tuple(m for m in self.milestones if m < epochs)
        schedule = "constant" if self.schedule == "multistep" and not milestones else self.schedule
        return replace(
            first, epochs=epochs, lr=self._later_lr, schedule=schedule, milestones=milestones, warmup_epochs=0
        )

    def of_pruning(self) -> Optimisation:
        """The optimisation of the pruning stages."""
        return replace(
            self.of_stage(0), epochs=self.prune_epochs, lr=self._later_lr, schedule="constant", warmup_epochs=0
        )

    def chosen(self, bundle: "DataBundle") -> "Settings":
        return replace(
            super().chosen(bundle),
            later_epochs=unless_auto(self.later_epochs, max(self.epochs // 2, 1)),
            later_lr=self._later_lr,
            group_minima=self.minima,
            order=unless_auto(self.order, tuple(range(len(self.minima) + 1))),
        )

    @property
    def minima(self) -> tuple[int, ...]:
        """`group_minima`; if it is "auto", those of the default of `--groups`."""
        return unless_auto(self.group_minima, (101, 20))  # the command line has replaced auto

    @property
    def _later_lr(self) -> float:
        return unless_auto(self.later_lr, self.lr / 10)
