"""The test-time ensemble of a trained run: the mean of the class scores of several crops of an image.

Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024, section 4.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from PIL import Image
from torch import Tensor

from ltfast.data.crops import CropViews
from ltfast.engine import Predictor
from ltfast.methods.batches import share
from ltfast.methods.context import BuildContext
from ltfast.runs.restore import Tested, Trained

Crops = Literal["five_crop", "ten_crop"]
NUMBER: dict[Crops, int] = {"five_crop": 5, "ten_crop": 10}

T = TypeVar("T", bound=Trained)


class CropMean(Predictor):
    """The mean of the class scores of the crops of an image. Its scores are not probabilities yet: the mean is taken
    before the softmax.

    The first view of a batch has the crops, (B, N, channels, H, W). The other views, which a predictor may have, are
    those of the image, and are the same for all of its crops.

    Args:
        predictor: predicts each crop as an image.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor
        self.views, self.adapts, self.score_scale = predictor.views, predictor.adapts, predictor.score_scale

    def adapt(self, views: Iterable[Sequence[Tensor]]) -> None:
        self.predictor.adapt(_rows(*batch) for batch in views)

    def predict(self, *views: Tensor) -> Tensor:
        return self.predictor.predict(*_rows(*views)).unflatten(0, views[0].shape[:2]).mean(1)


def with_crops(trained: T, crops: Crops, context: BuildContext | None = None) -> T:
    """A run that predicts the crops of an image, see `CropViews`, and takes the mean of their scores.

    Its first transform and the first view of its test batches make the crops, (N, channels, size, size).

    Args:
        trained: the run.
        crops: which ones.
        context: the context of a run with test images. Its test batches get as many crops as the context has images, so
            that they take as much memory. None leaves no test batches.
    """
    evaluation: Any = trained.transforms[0]
    first = CropViews(evaluation, trained.image_size, mirrored=crops == "ten_crop")
    transforms: list[Callable[[Image.Image], Tensor]] = [first, *trained.transforms[1:]]
    test: Iterable[Sequence[Tensor]] = ()
    if context is not None and isinstance(trained, Tested):
        fewer = replace(context, test_batch_size=images_per_batch(context.test_batch_size, crops))
        test = share(trained.images, transforms, fewer)
    plan = replace(trained.plan, test=test)
    return replace(trained, plan=plan, predictor=CropMean(trained.predictor).eval(), transforms=transforms)


def images_per_batch(batch_size: int, crops: Crops) -> int:
    """The number of images whose crops fill a batch."""
    return max(1, batch_size // NUMBER[crops])


def _rows(crops: Tensor, *others: Tensor) -> list[Tensor]:
    """A row for each crop, and the other views of its image in the same row."""
    return [crops.flatten(0, 1), *(view.repeat_interleave(crops.shape[1], 0) for view in others)]
