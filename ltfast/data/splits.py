"""The result of reading a data source."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ltfast.data.datasets import ImageDataset


class Splits(NamedTuple):
    """The training, test and validation part of a data set.

    Attributes:
        train: the training images.
        test: the test images; None if the source has none, so that they have to be taken from the training images.
        named: whether the classes have names; otherwise their names are the labels as strings.
        left_out: one line about the files that were left out and why; None without any.
        validation: the validation images; None if the source has none.
        origins: see `DataBundle.origins`.
    """

    train: ImageDataset
    test: ImageDataset | None
    named: bool = True
    left_out: str | None = None
    validation: ImageDataset | None = None
    origins: Mapping[str, str] = MappingProxyType({})
