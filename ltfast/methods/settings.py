"""Settings that methods share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltfast.engine import Optimisation, check, option

if TYPE_CHECKING:
    from ltfast.data import DataBundle


@dataclass(frozen=True, kw_only=True)
class BackboneSettings(Optimisation):
    """Options of every method that trains a timm backbone on images.

    Raises:
        ValueError: a setting out of its range.
    """

    backbone: str | None = option(
        None, "any timm model; none: digits_convnet up to 16 pixels, resnet32_cifar up to 64, resnet50 above"
    )
    pretrained: bool = option(False, "start from timm's pretrained weights")
    image_size: int | None = option(None, "pixels of height and width; none: the data's own")

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.image_size
        check(size is None or size >= 1, "image_size", "at least 1 pixel, or none", size)

    def size_for(self, bundle: "DataBundle") -> int:
        """Height and width in pixels of the images that a network for this data takes."""
        return bundle.image_size if self.image_size is None else self.image_size
