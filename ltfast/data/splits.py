"""The result of reading a data source."""

from typing import NamedTuple

from ltfast.data.datasets import ImageDataset


class Splits(NamedTuple):
    """The training and test part of a data set.

    Attributes:
        train, test: the images.
        named: whether the classes have names; otherwise their names are the labels as strings.
        left_out: one line about the files that were left out and why; None without any.
    """

    train: ImageDataset
    test: ImageDataset
    named: bool = True
    left_out: str | None = None
