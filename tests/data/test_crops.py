import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ltfast.data import ArrayDataset, DataBundle, eval_transform
from ltfast.data.crops import CentreCrop, CropViews, FiveCrop

SIZES = [(300, 400), (375, 500), (4, 1), (64, 64), (37, 91), (640, 160)]
LONG = [(1, 5), (2, 301), (30, 131), (97, 1201), (1, 60_000)]


def variants(size):
    """An image of random pixels, transposed, and in grey."""
    image = Image.fromarray(np.random.RandomState(sum(size)).randint(0, 256, (*size, 3), dtype=np.uint8))
    return image, image.transpose(Image.Transpose.TRANSPOSE), image.convert("L")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [8, 224])
def test_the_centre_crop_has_torchvisions_bits(size, side):
    short = side * 256 // 224
    expected = v2.Compose([v2.Resize(short), v2.CenterCrop(side)])
    for picture in variants(size):
        assert CentreCrop(short, side)(picture).tobytes() == expected(picture).tobytes()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("short", "side"), [(9, 8), (35, 32), (248, 224)])
def test_five_crops_have_torchvisions_bits(size, short, side, mirrored):
    crops = v2.TenCrop(side) if mirrored else v2.FiveCrop(side)
    for picture in variants(size):
        ours = FiveCrop(short, side, mirrored=mirrored)(picture)
        expected = crops(v2.Resize(short)(picture))
        assert [crop.tobytes() for crop in ours] == [crop.tobytes() for crop in expected]


@pytest.mark.parametrize("size", LONG)
@pytest.mark.parametrize("side", [1, 8, 16])
def test_of_a_long_image_what_the_crops_keep_is_resized(size, side, monkeypatch):
    resize, sizes = Image.Image.resize, []
    pairs = [
        (lambda picture: [CentreCrop(short, side)(picture)], lambda picture: [v2.CenterCrop(side)(picture)]),
        (lambda picture: FiveCrop(short, side, mirrored=True)(picture), v2.TenCrop(side)),
    ]
    for short, (crop, expected) in zip((side * 256 // 224, side + 3), pairs, strict=True):
        for picture in variants(size):
            theirs = np.stack(expected(v2.Resize(short)(picture))).astype(int)
            with monkeypatch.context() as patch:
                patch.setattr(Image.Image, "resize", lambda *args, **kw: sizes.append(args[1]) or resize(*args, **kw))
                ours = np.stack(crop(picture)).astype(int)
            assert np.abs(ours - theirs).max() <= 1
    assert set(sizes) == {(side, side)}


@pytest.mark.parametrize(("size", "short"), [(224, 248), (384, 425), (32, 35), (8, 9), (2, 3)])
def test_crop_views_are_normalised_crops(size, short):
    """The short side is 248 for crops of 224 pixels, as in the authors' code, and in proportion for others."""
    pixels = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = ArrayDataset(pixels, torch.arange(3), ["a", "b", "c"])
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    views = CropViews(eval_transform(DataBundle(images, images, mean, std, 8, 3), size), size)
    image = Image.fromarray(np.random.RandomState(1).randint(0, 256, (70, 50), dtype=np.uint8))
    reference = v2.Compose(
        [
            v2.Grayscale(3),
            v2.Resize(short),
            v2.FiveCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    torch.testing.assert_close(views(image), torch.stack(reference(image)))
