import numpy as np
import pytest
import torch
from PIL import Image

from ltfast.data import ArrayDataset, FileDataset, fitting_size
from ltfast.data.image_sizes import size_for_sides


@pytest.mark.parametrize(
    ("side", "size"), [(8, 8), (16, 16), (28, 32), (40, 32), (64, 64), (96, 64), (128, 128), (181, 224), (3000, 224)]
)
def test_steps(side, size):
    assert size_for_sides([side]) == (size, side)


def test_the_median_of_the_short_sides(tmp_path):
    shapes = [(20, 100), (30, 25), (28, 28), (500, 600), (30, 29)]
    for i, shape in enumerate(shapes):
        Image.new("L", shape).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = [*range(len(shapes)), "broken", "missing"]
    images = FileDataset([tmp_path / f"{name}.png" for name in names], torch.zeros(len(names), dtype=torch.int64), "a")
    assert fitting_size(images) == (32, 28)
    assert fitting_size(images.subset(torch.tensor([5, 6]))) is None
    assert images.header(0) == (20, 100, "L")


def test_only_some_headers_are_read(tmp_path, monkeypatch):
    Image.new("RGB", (70, 70)).save(tmp_path / "a.png")
    images = FileDataset([tmp_path / "a.png"] * 2000, torch.arange(2000) % 2, ["a", "b"])
    read = []
    header = FileDataset.header
    monkeypatch.setattr(FileDataset, "header", lambda self, index: read.append(index) or header(self, index))
    monkeypatch.setattr(FileDataset, "image", None)
    assert fitting_size(images) == (64, 70)
    assert len(read) == 500
    assert (min(read), max(read)) == (0, 1999)


def test_headers_of_arrays():
    for shape, mode in (((4, 6, 8), "L"), ((4, 6, 8, 3), "RGB")):
        images = ArrayDataset(np.zeros(shape, np.uint8), torch.arange(4) % 2, ["a", "b"])
        assert images.header(1) == (8, 6, mode)
        assert super(ArrayDataset, images).header(1) == (8, 6, mode)  # that of other data sets, which decodes
