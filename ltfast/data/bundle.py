"""What a training run needs to know of its data."""

from dataclasses import dataclass
from hashlib import sha256

from ltfast.data.datasets import ImageDataset


@dataclass(frozen=True)
class DataBundle:
    """A training and a test set of the same classes.

    Attributes:
        train: the training images, long-tailed or not.
        test: the test images, never cut.
        mean, std: of each channel, pixel values in [0, 1]; as many as `channels`.
        image_size: height and width in pixels that the images have, or are to be brought to where they differ.
        channels: 1 (grey) or 3 (RGB).
        named: the classes have names; otherwise `class_names` are the labels' numbers.
        left_out: which files of the data set's folders were left out and why, in a line; None if none were.
    """

    train: ImageDataset
    test: ImageDataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    channels: int
    named: bool = True
    left_out: str | None = None

    @property
    def class_names(self) -> list[str]:
        """Length C."""
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.train.class_names)

    @property
    def class_counts(self) -> list[int]:
        """The number of training images of each class, length C."""
        return self.train.class_counts

    def digests(self, *, sizes: bool = True) -> dict[str, str]:
        """Short hashes of the parts of the data, by name: `class names`, `training labels`, `test images`, ...

        Args:
            sizes: see `ImageDataset.digests`.
        """
        names = "\0".join(self.class_names).encode(errors="surrogateescape")
        digests = {"class names": sha256(names).hexdigest()[:16]}
        for part, data in (("training", self.train), ("test", self.test)):
            digests |= {f"{part} {name}": value for name, value in data.digests(sizes=sizes).items()}
        return digests
