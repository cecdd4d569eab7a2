import dataclasses
import pickle
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ltfast.data import ArrayDataset, DataBundle, FileDataset, eval_transform, train_transform
from ltfast.data.transforms import Policy, _Cutout

POLICIES = get_args(Policy)


@pytest.fixture
def file_bundle(tmp_path):
    image = Image.fromarray(np.random.RandomState(2).randint(0, 256, (300, 400, 3), dtype=np.uint8))
    image.save(tmp_path / "noise.png")
    data = FileDataset([tmp_path / "noise.png"], torch.tensor([0]), ["noise"])
    return DataBundle(data, data, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), image_size=224, channels=3)


def reference(image, bundle, *steps):
    """torchvision's own normalisation after `steps`."""
    steps = [*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(bundle.mean, bundle.std)]
    return v2.Compose(steps)(image)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("image_size", "channels"), [(None, None), (16, None), (None, 3), (20, 3)])
@pytest.mark.parametrize("kind", ["colour_bundle", "grey_bundle", "file_bundle"])
def test_shapes_and_dtypes(request, kind, policy, image_size, channels):
    bundle = request.getfixturevalue(kind)
    transform = pickle.loads(pickle.dumps(train_transform(bundle, policy, image_size, channels)))  # workers may spawn
    torch.manual_seed(0)
    for _ in range(3):
        out = transform(bundle.train.image(0))
        size = image_size or bundle.image_size
        assert out.shape == (channels or bundle.channels, size, size)
        assert out.dtype == torch.float32
        assert type(out) is torch.Tensor
        assert out.isfinite().all()


def test_evaluation_of_arrays_is_normalisation(colour_bundle, grey_bundle):
    for bundle in (colour_bundle, grey_bundle):
        image = bundle.test.image(3)
        torch.testing.assert_close(eval_transform(bundle)(image), reference(image, bundle))
        torch.testing.assert_close(eval_transform(bundle, 12)(image), reference(image, bundle, v2.Resize((12, 12))))


def test_evaluation_of_files_is_resize_and_centre_crop(file_bundle):
    image = file_bundle.test.image(0)
    expected = reference(image, file_bundle, v2.Resize(256), v2.CenterCrop(224))
    torch.testing.assert_close(eval_transform(file_bundle)(image), expected)


def test_policy_none_is_the_evaluation(file_bundle, grey_bundle):
    for bundle in (file_bundle, grey_bundle):
        image = bundle.train.image(0)
        assert torch.equal(train_transform(bundle, "none")(image), eval_transform(bundle)(image))


def test_grey_as_colour_has_three_equal_channels(grey_bundle):
    image = grey_bundle.test.image(0)
    out = eval_transform(grey_bundle, channels=3)(image)
    assert torch.equal(out, eval_transform(grey_bundle)(image).expand(3, -1, -1))


def views_of(bundle, policy, number):
    transform, image = train_transform(bundle, policy), bundle.train.image(0)
    torch.manual_seed(0)
    return [transform(image) for _ in range(number)]


def crops(bundle, padding):
    """Every crop of the padded image, as the transform should give it."""
    image, size = bundle.train.image(0), bundle.image_size
    padded = v2.Pad(padding)(image)
    steps = range(2 * padding + 1)
    return [reference(v2.functional.crop(padded, y, x, size, size), bundle) for y in steps for x in steps]


def test_basic_crops_and_never_flips(grey_bundle):
    allowed = crops(grey_bundle, 1)
    seen = {
        next(i for i, crop in enumerate(allowed) if torch.allclose(view, crop, atol=1e-5))
        for view in views_of(grey_bundle, "basic", 200)
    }
    assert seen == set(range(9))


def test_cifar_crops_with_padding_4_and_flips_half(colour_bundle):
    allowed = torch.stack(crops(colour_bundle, 4))
    flipped = 0
    for view in views_of(colour_bundle, "cifar", 100):
        distance = (allowed - view).abs().amax((1, 2, 3)).min()
        mirrored = (allowed.flip(3) - view).abs().amax((1, 2, 3)).min()
        assert min(distance, mirrored) < 1e-5
        flipped += int(mirrored < distance)
    assert 30 < flipped < 70


def test_cutout_is_a_black_square_around_any_pixel():
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    torch.manual_seed(0)
    seen = set()
    for _ in range(3000):
        black = np.asarray(_Cutout()(white))[..., 0] == 0
        rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
        assert black.sum() == len(rows) * len(columns)
        assert len(rows) == rows[-1] - rows[0] + 1
        # the square reaches 8 to either side of its centre, and is cut off at the border
        seen.add((int(rows[0]), int(rows[-1]) + 1))
    assert seen == {(max(y - 8, 0), min(y + 8, 32)) for y in range(32)}
    assert np.asarray(white).min() == 255


def test_cifar_autoaugment_cuts_out_and_changes_colours(colour_bundle):
    images = colour_bundle.train.images // 4 + 64  # 64 to 127, so that new colours show
    train = ArrayDataset(images, colour_bundle.train.labels, ["even", "odd"])
    bundle = dataclasses.replace(colour_bundle, train=train, mean=(0.0,) * 3, std=(1.0,) * 3)
    views = (torch.stack(views_of(bundle, "cifar_autoaugment", 60)) * 255).round()
    black = (views == 0).all(1).float().mean((1, 2))
    assert (black >= 8 * 8 / 32**2).all()  # what is left of the hole in a corner
    recoloured = ((views > 0) & ((views < 64) | (views > 127))).flatten(1).any(1)
    assert 20 < recoloured.sum() < 60
    filled = (views == 128).all(1).float().mean((1, 2))  # beside a shifted image
    assert (filled > 0.1).any()


def test_simclr_and_imagenet_jitter_and_grey(colour_bundle):
    plain = dataclasses.replace(colour_bundle, mean=(0.0,) * 3, std=(1.0,) * 3)
    grey = [bool((view == view[:1]).all()) for view in views_of(plain, "simclr", 200)]
    assert 20 < sum(grey) < 65  # a fifth
    assert not any(bool((view == view[:1]).all()) for view in views_of(plain, "imagenet", 50))


@pytest.mark.parametrize("policy", set(POLICIES) - {"none"})
def test_augmentation_varies(colour_bundle, policy):
    views = torch.stack(views_of(colour_bundle, policy, 12))
    assert len(views.unique(dim=0)) > 6


def test_bad_arguments(colour_bundle, grey_bundle):
    with pytest.raises(ValueError, match=r"policy: expected one of none, basic, .*, got 'mixup'"):
        train_transform(colour_bundle, "mixup")
    with pytest.raises(ValueError, match="image_size: expected at least 1 pixel, got 0"):
        eval_transform(colour_bundle, 0)
    with pytest.raises(ValueError, match=r"channels: expected one of \[3\], got 1"):
        train_transform(colour_bundle, "none", channels=1)
    with pytest.raises(ValueError, match=r"channels: expected one of \[1, 3\], got 4"):
        eval_transform(grey_bundle, channels=4)
