"""The data of a training run and its properties."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from ltfast.data.datasets import ImageDataset
from ltfast.errors import SettingError


@dataclass(frozen=True)
class DataBundle:
    """The training, validation and test images of a data set, with the same classes.

    Attributes:
        train: the training images, long-tailed or not.
        test: the test images, never subsampled.
        mean, std: mean and standard deviation of each channel, for pixel values in [0, 1]; length `channels`.
        image_size: height and width of the images in pixels; if they differ, the size to which they are resized.
        channels: 1 (greyscale) or 3 (RGB).
        named: whether the classes have names; otherwise `class_names` are the labels as strings.
        left_out: one line about the files in the data set's folders that were left out and why; None without any.
        validation: the validation images; None without any.
        origins: where the test and the validation images come from, in a few words, by the name of the attribute; empty
            for a source with fixed parts.
    """

    train: ImageDataset
    test: ImageDataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    channels: int
    named: bool = True
    left_out: str | None = None
    validation: ImageDataset | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """The class names, length C."""
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.train.class_names)

    @property
    def class_counts(self) -> list[int]:
        """The number of training images of each class, length C."""
        return self.train.class_counts

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> "DataBundle":
        """This data, with other values for the normalisation.

        Args:
            mean, std: mean and standard deviation of each channel, for pixel values in [0, 1]; length `channels`.

        Raises:
            SettingError: a length differs, a value is not finite, or a standard deviation is not above 0.
        """
        channels = "1 number, for the greyscale images" if self.channels == 1 else f"{self.channels} numbers"
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise SettingError(name, channels, tuple(values))
        if min(std) <= 0:
            raise SettingError("std", "numbers above 0", tuple(std))
        return replace(self, mean=tuple(mean), std=tuple(std))

    def digests(self, *, sizes: bool = True) -> dict[str, str]:
        """Short hashes of the parts of the data, by name: `class names`, `training labels`, `test images`, ...

        Args:
            sizes: whether to include file sizes; see `ImageDataset.digests`.
        """
        names = "\0".join(self.class_names).encode(errors="surrogateescape")
        digests = {"class names": sha256(names).hexdigest()[:16]}
        for part, data in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            if data is not None:
                digests |= {f"{part} {name}": value for name, value in data.digests(sizes=sizes).items()}
        return digests
