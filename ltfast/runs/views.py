"""The views of a single image that a trained run takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import crop

from ltfast.data.crops import CentreCrop
from ltfast.data.seeding import derive_seed, seeded
from ltfast.errors import InputError
from ltfast.runs.crops import NUMBER, Crops, images_per_batch, with_crops
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
    """Makes the views of an image that a run predicts, and of its variants.

    Args:
        trained: the run.
        tta: the number N of variants of the image: itself, its mirror image, and random crops.
    """

    def __init__(self, trained: Trained, tta: int = 1) -> None:
        self.fit = Fit(trained.facts)
        self.transforms: Sequence[Callable[[Image.Image], Tensor]] = trained.transforms
        self.tta = tta

    def __call__(self, image: Image.Image, number: int) -> list[Tensor]:
        """The views of the variants of an image. For each view in the test batches of the run, they are (N, channels,
        size, size) float32, or (N, crops, channels, size, size) if that view has crops. The random numbers depend only
        on `number`. With the image's number in the test set, the views of the image itself are those of `ltfast eval`.
        """
        return default_collate([self._variant(image, number, kind) for kind in range(self.tta)])

    def _variant(self, image: Image.Image, number: int, kind: int) -> list[Tensor]:
        with seeded(derive_seed("tta", number, kind) if kind else derive_seed("views", 0, number)):
            if kind == 1:
                image = ImageOps.mirror(image)
            elif kind > 1:
                image = crop(image, *RandomResizedCrop.get_params(image, list(_SCALE), list(_RATIO)))
            image = self.fit(image)
            return [transform(image) for transform in self.transforms]


def augmented(trained: Trained, tta: int | Crops, batch_size: int) -> tuple[Trained, Views, int]:
    """A run with test-time augmentation: the run, the views that its predictor takes, and the images per batch.

    Args:
        trained: the run.
        tta: the number of variants, see `Views`; or the crops, see `with_crops`.
        batch_size: images, or crops, per batch.

    Raises:
        InputError: `tta` is none of these.
    """
    if isinstance(tta, str) and tta in NUMBER:
        trained = with_crops(trained, tta)
        return trained, Views(trained), images_per_batch(batch_size, tta)
    if not isinstance(tta, int) or tta < 1:
        raise InputError(f"expected a number of at least 1, {' or '.join(NUMBER)}, got {tta!r}", name="tta")
    return trained, Views(trained, tta), batch_size
