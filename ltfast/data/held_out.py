"""The test images of a source, without its training images."""

from pathlib import Path

from ltfast.data.arrays import read_test_arrays
from ltfast.data.bundle import DataBundle
from ltfast.data.datasets import ArrayDataset, ImageDataset
from ltfast.data.folder import read_test_folder
from ltfast.data.lists import read_test_list
from ltfast.data.sources import load
from ltfast.errors import InputError


def load_test(source: str, *, root: str | Path = "data") -> DataBundle:
    """Load the test images of a source. The training images of `folder:`, `list:` and `npz:` may be missing.

    Args:
        source, root: see `ltfast.data.load`.

    Returns:
        The bundle. For the three sources, its training images are the test images again, `mean` and `std` are 0 and 1,
        and the classes are those of the test images: the class folders, or the numbers up to the largest label.

    Raises:
        InputError, InputTypeError, InputNotFoundError, PackageError: see `ltfast.data.load`.
    """
    kind, _, name = source.partition(":")
    path, left_out = Path(name).expanduser(), None
    images: ImageDataset
    if kind == "folder" and name:
        images, left_out = read_test_folder(path)
    elif kind == "list" and name:
        images = read_test_list(path, Path(root).expanduser())
    elif kind == "npz" and name:
        images = read_test_arrays(path)
    else:
        return load(source, root=root)
    size, channels = _format(source, images)
    mean, std = (0.0,) * channels, (1.0,) * channels
    return DataBundle(images, images, mean, std, size, channels, named=kind == "folder", left_out=left_out)


def _format(source: str, images: ImageDataset) -> tuple[int, int]:
    """The height and width in pixels, and the number of channels."""
    if not isinstance(images, ArrayDataset):
        return 224, 3
    height, width = images.images.shape[1:3]
    if height != width:
        raise InputError(f"{source}: expected square images, got {height} x {width}; pad them, or use folder:")
    return height, 1 if images.images.ndim == 3 else 3
