"""The views of a single image that a trained run takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import crop

from ltfast.data.seeding import derive_seed, seeded
from ltfast.data.transforms import CentreCrop
from ltfast.runs.restore import Trained, in_arrays

_SCALE, _RATIO = (0.5, 1.0), (3 / 4, 4 / 3)  # of the random crops; half of an image shows most objects


class Fit:
    """Crops an image of any size to the format of the training images, which is square if they were in arrays."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        size = facts["image_size"]
        self.crop = CentreCrop(size, size) if in_arrays(facts) else None  # for files, the transforms do it

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if self.crop is None else self.crop(image)


class Views:
    """Makes the views of an image.

    Args:
        trained: the run.
        tta: the number N of variants of the image: itself, its mirror image, and random crops.
    """

    def __init__(self, trained: Trained, tta: int = 1) -> None:
        self.fit = Fit(trained.facts)
        self.transforms: Sequence[Callable[[Image.Image], Tensor]] = trained.transforms
        self.tta = tta

    def __call__(self, image: Image.Image, number: int) -> Tensor:
        """The views of an image, (N, V, channels, size, size) float32: of each variant, V views, as in the test batches
        of the run. The random numbers depend only on `number`. With the image's number in the test set, the views of
        the image itself are those of `ltfast eval`."""
        return torch.stack([self._variant(image, number, kind) for kind in range(self.tta)])

    def _variant(self, image: Image.Image, number: int, kind: int) -> Tensor:
        with seeded(derive_seed("tta", number, kind) if kind else derive_seed("views", 0, number)):
            if kind == 1:
                image = ImageOps.mirror(image)
            elif kind > 1:
                image = crop(image, *RandomResizedCrop.get_params(image, list(_SCALE), list(_RATIO)))
            image = self.fit(image)
            return torch.stack([transform(image) for transform in self.transforms])
