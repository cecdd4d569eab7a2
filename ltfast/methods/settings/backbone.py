"""The settings that all methods share.

The value "auto" means that the setting is chosen for the method and the data. The value None, which is `none` on the
command line and in recipes, leaves out what the setting is for.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ltfast.engine import Optimisation, check, option
from ltfast.methods.class_weights import class_weights, read_class_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ltfast.data import DataBundle

S = TypeVar("S", bound="BackboneSettings")
T = TypeVar("T")


def unless_auto(value: T | Literal["auto"], chosen: T) -> T:
    """A setting's value, or `chosen` if it is "auto"."""
    return chosen if value == "auto" else value


@dataclass(frozen=True, kw_only=True)
class BackboneSettings(Optimisation):
    """Options of every method that trains a timm backbone on images.

    Raises:
        ValueError: a setting is out of its range.
    """

    backbone: str = option(
        "auto", "any timm model; auto: digits_convnet up to 16 pixels, resnet32_cifar up to 64, resnet50 above"
    )
    pretrained: bool = option(False, "start from timm's pretrained weights")
    init: str | None = option(
        None,
        "folder or checkpoint of a run of any method: start from its backbone, and from its classifier if the classes "
        "are the same",
    )
    weights: str | None = option(
        None,
        "file of weights to start from, .safetensors or written by torch.save, with timm's names for this backbone; a "
        "classifier in it is left out",
    )
    image_size: int | Literal["auto"] = option(
        "auto",
        "pixels of height and width; auto: that of arrays; for files 8, 16, 32, 64, 128 or 224, by the median of their "
        "short sides; 224 with --pretrained and --weights, and with --init that of the run",
    )
    label_smoothing: float | Literal["auto"] = option(
        "auto",
        "share of a target that the classifier's loss spreads over all classes; auto: 0.1 with agcl, 0 otherwise",
    )
    class_weights: str | tuple[float, ...] | None = option(
        None,
        "weights of the classes in the classifier's loss: balanced, inverse to the number of images; effective, to the "
        "effective number of images; or a text file with a weight per line in the order of the classes, or with "
        "name,weight",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.image_size
        check(size == "auto" or size >= 1, "image_size", "at least 1 pixel, or auto", size)
        check(not (self.pretrained and self.init), "init", "none with --pretrained", self.init)
        check(not (self.pretrained and self.weights), "weights", "none with --pretrained", self.weights)
        check(not (self.init and self.weights), "weights", "none with --init", self.weights)
        smoothing, weights = self.label_smoothing, self.class_weights
        check(smoothing == "auto" or 0 <= smoothing < 1, "label_smoothing", "a number in [0, 1), or auto", smoothing)
        positive = weights is None or isinstance(weights, str) or all(weight > 0 for weight in weights)
        check(positive, "class_weights", "numbers over 0", weights)
        loss, takes = self.loss_takes()
        plain = "label_smoothing" in takes or smoothing in ("auto", 0)
        check(plain, "label_smoothing", f"auto with the loss {loss}, which has no label smoothing", smoothing)
        alike = "class_weights" in takes or weights is None
        check(alike, "class_weights", f"none with the loss {loss}, which takes no class weights", weights)

    def loss_takes(self) -> tuple[str, Collection[str]]:
        """The name of the classifier's loss, and which of `label_smoothing` and `class_weights` it takes."""
        return "cross_entropy", ("label_smoothing", "class_weights")

    def with_files_read(self: S, bundle: "DataBundle") -> S:
        """These settings, with the content of a file in the place of its name: the run does not need the file again.

        Raises:
            InputError: the file cannot be read, or does not fit the data.
        """
        weights = self.class_weights
        if not isinstance(weights, str) or weights in ("balanced", "effective"):
            return self
        return replace(self, class_weights=read_class_weights(Path(weights), bundle.class_names))

    def size_for(self, bundle: "DataBundle") -> int:
        """The height and width in pixels of the network's images, for this data."""
        return unless_auto(self.image_size, bundle.image_size)

    def score_distribution(self, class_counts: Sequence[int]) -> "Tensor | None":
        """The class distribution that the trained class scores follow: that of images on which the softmax of the
        scores would be calibrated if the network had learned its loss's optimum.

        Args:
            class_counts: training images of each class, length C.

        Returns:
            (C,) float64, positive, not normalised; None if the method and its loss have no such distribution.
        """
        return None

    def _weighted(self, distribution: "Tensor", class_counts: Sequence[int]) -> "Tensor":
        """A distribution (C,) times the weights of the classes: an image of weight w counts as w images do."""
        weights = class_weights(self.class_weights, class_counts)
        return distribution if weights is None else distribution * weights

    def chosen(self: S, bundle: "DataBundle") -> S:
        """These settings, with "auto" replaced wherever the value follows from other settings and the data."""
        from ltfast.models import default_backbone

        size = self.size_for(bundle)
        return replace(self, image_size=size, backbone=unless_auto(self.backbone, default_backbone(size)))


def loss_weight(settings: BackboneSettings, class_counts: Sequence[int]) -> "Tensor | None":
    """The argument `weight` of a loss for these settings: (C,) float32, or None."""
    weights = class_weights(settings.class_weights, class_counts)
    return None if weights is None else weights.float()
