import random

import numpy as np
import pytest
import torch
from PIL import Image

from ltfast.data import ArrayDataset, DataBundle, PatchViews


def bundle(size=32, channels=3):
    shape = (4, size, size, channels)[: 3 if channels == 1 else 4]
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = ArrayDataset(images, torch.tensor([0, 1, 0, 1]), ["a", "b"])
    return DataBundle(data, data, (0.0,) * channels, (1 / 255,) * channels, image_size=size, channels=channels)


def views(policy="basic", data=None, size=32, **changes):
    options = {"patches": 3, "patch_size": 16, "scale": (0.05, 0.6)} | changes
    return PatchViews(data or bundle(), policy, size, **options)


@pytest.mark.parametrize("policy", ["basic", "cifar", "dscl"])
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 8), (3, 96)])
def test_shapes_and_boxes(policy, channels, size):
    data = bundle(size, channels)
    make = views(policy, data, size, patch_size=5)
    for _ in range(20):
        query, key, patches, boxes = make(data.train[0][0])
        assert query.shape == key.shape == (channels, size, size)
        assert patches.shape == (3, channels, 5, 5)
        assert boxes.shape == (3, 4)
        assert {x.dtype for x in (query, key, patches, boxes)} == {torch.float32}
        assert ((boxes >= 0) & (boxes <= size)).all()
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        assert (width >= 1).all()
        assert (height >= 1).all()


def test_patches_are_the_boxes_of_the_query():
    """The policy "basic" does not change colours or flip."""
    make = views()
    for index in range(4):
        query, _, patches, boxes = make(bundle().train[index][0])
        image = Image.fromarray(query.permute(1, 2, 0).byte().numpy())
        for patch, box in zip(patches, boxes.tolist(), strict=True):
            expected = image.resize((16, 16), Image.Resampling.BILINEAR, box)
            assert torch.equal(patch, torch.from_numpy(np.array(expected)).permute(2, 0, 1).float())


def test_areas_are_within_the_scale():
    make = views(scale=(0.2, 0.5), patches=50)
    boxes = make(bundle().train[0][0])[3]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 32**2
    assert (areas > 0.15).all()  # sides are rounded to whole pixels
    assert (areas < 0.56).all()
    assert areas.std() > 0.03


def test_views_differ_and_follow_from_the_seed():
    image = bundle().train[0][0]
    make = views("dscl")
    random.seed(1)
    np.random.seed(1)
    first, other = make(image), make(image)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    random.seed(1)
    np.random.seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, make(image), strict=True))


def test_without_patches():
    query, _, patches, boxes = views(patches=0)(bundle().train[0][0])
    assert patches.shape == (0, 3, 16, 16)
    assert boxes.shape == (0, 4)
    assert query.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "moco"}, "policy: expected one of basic, cifar, dscl, got 'moco'"),
        ({"patches": -1}, "patches: expected at least 0, got -1"),
        ({"patch_size": 0}, "patch_size: expected at least 1 pixel, got 0"),
        ({"scale": (0.6, 0.1)}, r"scale: expected two ascending fractions in \(0, 1\], got \(0.6, 0.1\)"),
        ({"scale": (0.0, 0.1)}, "scale: expected two ascending fractions"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        views(**changes)
