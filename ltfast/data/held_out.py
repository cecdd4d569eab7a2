"""The test images of a source, without its training images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltfast.data.arrays import read_test_arrays
from ltfast.data.bundle import DataBundle
from ltfast.data.datasets import ArrayDataset, ImageDataset
from ltfast.data.folder import read_test_folder
from ltfast.data.lists import read_test_list
from ltfast.data.sources import check_options, load, root_of
from ltfast.data.table import read_test_table
from ltfast.errors import InputError


def load_test(
    source: str,
    *,
    root: str | Path | None = None,
    test: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    test_fraction: float | None = None,
    folds: int | None = None,
    fold: int | None = None,
    seed: int = 0,
) -> DataBundle:
    """Load the test images of a source. The training images of `folder:`, `csv:`, `list:` and `npz:` may be missing,
    unless `test_fraction` or `folds` is given.

    All images of a table without a column `split` are test images, and a list without "train" in its name is itself the
    test list.

    Args:
        source, root, test, columns, test_fraction, folds, fold, seed: see `ltfast.data.load`.

    Returns:
        The bundle. For these sources, its training images are the test images again, `mean` and `std` are 0 and 1, and
        the classes are those of the test images: the class folders, the labels that are words, or the numbers up to the
        largest label.

    Raises:
        InputError, InputTypeError, InputNotFoundError, PackageError: see `ltfast.data.load`.
    """
    kind, _, name = source.partition(":")
    taken = test_fraction is not None or folds is not None
    if taken or kind not in ("folder", "csv", "list", "npz") or not name:
        options: dict[str, Any] = {"test_fraction": test_fraction, "folds": folds, "fold": fold, "seed": seed}
        return load(source, root=root, test=test, columns=columns, **options)
    check_options(source, test, columns)
    path, folder = Path(name).expanduser(), root_of(source, root)
    images: ImageDataset
    named, left_out = True, None
    if kind == "folder":
        images, left_out = read_test_folder(path)
    elif kind == "csv":
        images, named = read_test_table(path, folder, columns)
    elif kind == "list":
        images, named = read_test_list(path, folder, None if test is None else Path(test).expanduser()), False
    else:
        images, named = read_test_arrays(path)
    size, channels = _format(source, images)
    mean, std = (0.0,) * channels, (1.0,) * channels
    return DataBundle(images, images, mean, std, size, channels, named=named, left_out=left_out)


def _format(source: str, images: ImageDataset) -> tuple[int, int]:
    """The height and width in pixels, and the number of channels."""
    if not isinstance(images, ArrayDataset):
        return 224, 3
    height, width = images.images.shape[1:3]
    if height != width:
        raise InputError(f"{source}: expected square images, got {height} x {width}; pad them, or use folder:")
    return height, 1 if images.images.ndim == 3 else 3
