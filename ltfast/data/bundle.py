"""The data of a training run and its properties."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from ltfast.data.datasets import ImageDataset


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
