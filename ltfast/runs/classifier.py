"""A trained run as an object that classifies images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.transforms import Compose

from ltfast.data.decode import decode, open_regular, upright
from ltfast.engine import RunSettings
from ltfast.engine.export import Prediction
from ltfast.engine.report import METRICS, read_metrics
from ltfast.engine.stage import Predictor
from ltfast.errors import InputError, InputTypeError
from ltfast.ops.core.warn import warn_caller
from ltfast.runs.calibration import Calibration, calibrated
from ltfast.runs.crops import Crops
from ltfast.runs.restore import Trained, restore
from ltfast.runs.views import Fit, augmented

ImageLike = str | Path | Image.Image | NDArray[np.uint8]


class Classifier:
    """A trained run; `ltfast.runs.load` makes it.

    Attributes:
        module: an `nn.Module` in evaluation mode from normalised images (B, channels, size, size) to class scores
            (B, C). The module of method `do` with `aggregate="instance"` takes three such tensors: the images and two
            augmented views of each.
        transform: the evaluation transform, from an RGB PIL image of any size to a normalised float32 tensor
            (channels, size, size).
        class_names: the names of the classes, length C.
        metrics: the content of the run's `metrics.json`; None if the run has none.
        calibration: the calibration of the run, which `predict` and `module` contain; None without one.
        device: the device of the module.
    """

    module: nn.Module
    transform: Callable[[Image.Image], Tensor]
    class_names: list[str]
    metrics: dict[str, Any] | None
    calibration: Calibration | None
    device: torch.device

    def __init__(
        self,
        trained: Trained,
        device: torch.device,
        metrics: dict[str, Any] | None,
        calibration: Calibration | None = None,
    ) -> None:
        self.trained = trained
        self.predictor = trained.predictor.to(device).eval()
        self.module = Prediction(self.predictor).eval()
        self.transform = Compose([Fit(trained.facts), trained.transforms[0]])
        self.class_names = list(trained.facts["class_names"])
        self.metrics = metrics
        self.calibration = calibration
        self.device = device

    def predict(
        self, images: Sequence[ImageLike] | NDArray[np.uint8], *, batch_size: int = 256, tta: int | Crops = 1
    ) -> Tensor:
        """Classify images.

        Args:
            images: paths of image files, PIL images, or uint8 arrays of shape (H, W), (H, W, 1) or (H, W, 3), of any
                sizes, N in all; or an array (N, H, W, 1) or (N, H, W, 3). Files and PIL images are rotated according to
                their Exif orientation.
            batch_size: images per batch; or crops, with "five_crop" and "ten_crop".
            tta: test-time augmentation. A number N takes the mean of the probabilities of N variants of each image:
                itself, its mirror image, and random crops. "five_crop" resizes the image to slightly more than the size
                of the run's images, and takes the mean of the class scores of its corners and its centre, before the
                softmax; "ten_crop" does so with these crops and those of the mirror image.

        Returns:
            The probability of each class, (N, C) float32, on the CPU.

        Raises:
            ImageNotFoundError, ImageDecodeError: a file is missing or cannot be decoded; the message names it.
            InputError, InputTypeError: an image is invalid; the message gives its index. Or another argument is.
        """
        if isinstance(images, str | Path | Image.Image):
            raise InputTypeError(f"images: expected a list of images, got one {type(images).__name__}: use [image]")
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise InputError(f"images: expected an array (N, H, W, 3), or a list of arrays, got shape {images.shape}")
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}")
        trained, views, batch_size = augmented(self.trained, tta, batch_size)
        results = []
        for start in range(0, len(images), batch_size):
            some = enumerate(images[start : start + batch_size], start)
            batch = default_collate([views(_decoded(image, number), number) for number, image in some])
            results.append(probabilities(trained.predictor, [view.to(self.device) for view in batch]).float())
        return torch.cat(results) if results else torch.zeros(0, len(self.class_names))


def load(
    run: str | Path,
    device: torch.device | str | None = None,
    *,
    aggregate: str | None = None,
    calibration: bool = True,
) -> Classifier:
    """Load a trained run. It needs the run's folder alone, and none of the run's images.

    Args:
        run: the run's folder, or its checkpoint file.
        device: the device for the network; None means the GPU if there is one, otherwise the CPU.
        aggregate: the weighting of the sub-models of method `do`, "instance" or "average"; None means that of the run.
        calibration: whether to use the calibration of the run, if `ltfast calibrate` has made one.

    Returns:
        The run as a `Classifier`.

    Raises:
        InputNotFoundError: there is no checkpoint.
        CheckpointError: the checkpoint cannot be read, or no trained stage gives class scores.
        InputError: the run is one of method `do` that learns from a whole test set (`aggregate="group"`); the method
            does not support `aggregate`; or the calibration is damaged, or belongs to something else.
    """
    path = Path(run)
    trained = restore(path, run=RunSettings(), aggregate=aggregate)
    refuse_adapting(trained)
    if trained.unfinished is not None:
        warn_caller(f"{run}: {trained.unfinished}")
    trained, found = calibrated(trained, path, aggregate) if calibration else (trained, None)
    folder = path if path.is_dir() else path.parent
    metrics = read_metrics(folder) if (folder / METRICS).is_file() else None
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return Classifier(trained, torch.device(default if device is None else device), metrics, found)


def refuse_adapting(trained: Trained) -> None:
    """Refuse a run that learns from a whole test set.

    Raises:
        InputError: the run is one.
    """
    if trained.predictor.adapts:
        raise InputError(
            "expected instance or average: group learns the weights of the sub-models from a whole test set, and "
            "images are predicted one by one",
            name="aggregate",
        )


@torch.no_grad()
def probabilities(predictor: Predictor, views: Sequence[Tensor], shift: Tensor | None = None) -> Tensor:
    """The mean of the probabilities of all variants of an image.

    Args:
        predictor: in evaluation mode.
        views: each (B, N, ..., channels, size, size), as `Views` makes them, on the device of the predictor.
        shift: is added to the scores, (C,) on the CPU; None adds nothing.

    Returns:
        (B, C) float64, on the CPU. In float32, classes of different scores may have the same probability.
    """
    each = []
    for variant in zip(*(view.unbind(1) for view in views), strict=True):
        scores = predictor.predict(*(view.contiguous() for view in variant))
        scores = predictor.score_scale * scores.cpu().double()
        each.append((scores if shift is None else scores + shift).softmax(1))
    return torch.stack(each).mean(0)


def decode_file(path: str) -> Image.Image:
    """The image in a file; see `ltfast.data.decode.decode`."""
    return decode(lambda: open_regular(path), lambda: path)


def _decoded(image: ImageLike, index: int) -> Image.Image:
    if isinstance(image, str | Path):
        return decode_file(str(image))
    if isinstance(image, np.ndarray):
        image = _from_array(image, index)
    if not isinstance(image, Image.Image):
        kinds = "a path, a PIL image or a uint8 array"
        raise InputTypeError(f"images[{index}]: expected {kinds}, got {type(image).__name__}")
    try:
        return upright(image)
    except ValueError as error:
        raise InputError(f"images[{index}]: {error}") from error


def _from_array(array: NDArray[Any], index: int) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputTypeError(f"images[{index}]: expected uint8 in 0..255, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise InputError(f"images[{index}]: expected shape (H, W), (H, W, 1) or (H, W, 3), got {array.shape}")
    return Image.fromarray(array)
