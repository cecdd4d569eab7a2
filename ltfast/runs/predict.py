"""Classifies a stream of images."""

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from ltfast.data import ImageDecodeError, ImageNotFoundError
from ltfast.methods.loader import Loader
from ltfast.runs.classifier import Classifier, decode_file, probabilities
from ltfast.runs.crops import Crops
from ltfast.runs.image_paths import ImagePaths
from ltfast.runs.views import Views, augmented


class Row(NamedTuple):
    """The prediction for one image.

    Attributes:
        path: the file.
        classes: the names of the most probable classes, sorted by falling probability; the first name is empty if its
            probability is too low. Empty if the image is broken.
        probabilities: their probabilities.
        error: why the image cannot be read; None if it can.
    """

    path: str
    classes: Sequence[str]
    probabilities: Sequence[float]
    error: str | None


def predictions(
    classifier: Classifier,
    paths: ImagePaths,
    *,
    skip: int = 0,
    top: int = 3,
    tta: int | Crops = 1,
    shift: Tensor | None = None,
    abstain: float = 0.0,
    thresholds: Sequence[float] | None = None,
    batch_size: int = 256,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[list[Row]]:
    """Classify images batch by batch, in order.

    Args:
        classifier: the run.
        paths: the images.
        skip: the number of images at the start whose rows are left out. The batches are those of a call without it, so
            that the other rows have the same bits.
        top: the number of classes of a row, from 1 to C.
        tta: see `Classifier.predict`.
        shift: is added to the class scores, (C,); from `prior_shift`.
        abstain: the least probability of the best class with which an image gets a class.
        thresholds: such a probability for each class, length C; the larger one counts.
        batch_size: images per batch; or crops.
        workers: processes that load images; with 0, this process loads them.
        autocast: makes the context of each call of the network, for its precision.

    Yields:
        A row for each image of a batch.
    """
    least = torch.full((len(classifier.class_names),), abstain, dtype=torch.float32)
    if thresholds is not None:
        least = least.maximum(torch.tensor(thresholds))
    lowest = least.tolist()  # float32 numbers, as the probabilities in a row
    trained, views_of, batch_size = augmented(classifier.trained, tta, batch_size)
    done = skip % batch_size  # rows of the first batch
    loader = Loader(
        _Images(views_of),
        batch_size,
        sampler=_Keys(paths, skip - done),
        num_workers=workers,
        collate_fn=_collate,
    )
    for some, errors, views in loader:
        rows: Iterator[tuple[list[int], list[float]]] = iter(())
        if views is not None:
            with autocast():
                found = probabilities(trained.predictor, [view.to(classifier.device) for view in views], shift)
            values, indices = found.sort(descending=True, stable=True)  # the first of equal classes, as argmax
            rows = iter(zip(indices[:, :top].tolist(), values[:, :top].float().tolist(), strict=True))
        whole = [
            Row(path, [], [], error) if error is not None else _row(path, *next(rows), classifier.class_names, lowest)
            for path, error in zip(some, errors, strict=True)
        ]
        yield whole[done:]
        done = 0


def _row(path: str, indices: list[int], values: list[float], names: Sequence[str], lowest: Sequence[float]) -> Row:
    classes = [names[index] for index in indices]
    if values[0] < lowest[indices[0]]:
        classes[0] = ""
    return Row(path, classes, values, None)


class _Keys(Sampler[tuple[int, str]], Sized):
    """The number and path of each image after the first `skip`; not kept in memory."""

    def __init__(self, paths: ImagePaths, skip: int) -> None:
        self.paths, self.skip = paths, skip

    def __len__(self) -> int:
        return len(self.paths) - self.skip

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return islice(enumerate(self.paths), self.skip, None)


class _Images(Dataset[Any]):
    """The path of an image, its error and its views; one of the latter two is None."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitem__(self, key: tuple[int, str]) -> tuple[str, str | None, list[Tensor] | None]:
        number, path = key
        try:
            return path, None, self.views(decode_file(path), number)
        except (ImageDecodeError, ImageNotFoundError) as error:
            return path, " ".join(str(error).split()), None


def _collate(items: Sequence[tuple[str, str | None, list[Tensor] | None]]) -> tuple[list[str], list[str | None], Any]:
    paths, errors, views = zip(*items, strict=True)
    good = [view for view in views if view is not None]
    return list(paths), list(errors), default_collate(good) if good else None
