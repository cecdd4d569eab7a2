"""What a reader of a source gives."""

from typing import NamedTuple

from ltfast.data.datasets import ImageDataset


class Splits(NamedTuple):
    """The two parts of a data set.

    Attributes:
        train, test: the images.
        named: the classes have names; otherwise their names are the labels' numbers.
        left_out: which files were left out and why, in a line; None if none were.
    """

    train: ImageDataset
    test: ImageDataset
    named: bool = True
    left_out: str | None = None
