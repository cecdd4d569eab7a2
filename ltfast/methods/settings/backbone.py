"""The settings that all methods share.

The value "auto" means that the setting is chosen for the method and the data. The value None, which is `none` on the
command line and in recipes, leaves out what the setting is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from ltfast.engine import Optimisation, check, option

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
    image_size: int | Literal["auto"] = option("auto", "pixels of height and width; auto: the data's own")

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.image_size
        check(size == "auto" or size >= 1, "image_size", "at least 1 pixel, or auto", size)
        check(not (self.pretrained and self.init), "init", "none with --pretrained", self.init)
        check(not (self.pretrained and self.weights), "weights", "none with --pretrained", self.weights)
        check(not (self.init and self.weights), "weights", "none with --init", self.weights)

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

    def chosen(self: S, bundle: "DataBundle") -> S:
        """These settings, with "auto" replaced wherever the value follows from other settings and the data."""
        from ltfast.models import default_backbone

        size = self.size_for(bundle)
        return replace(self, image_size=size, backbone=unless_auto(self.backbone, default_backbone(size)))
