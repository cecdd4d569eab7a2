import dataclasses
import pickle
import random
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from ltfast.data import ArrayDataset, DataBundle, FileDataset, eval_transform, train_transform
from ltfast.data.transforms import (
    _CIFAR_POLICIES,
    ColorJitter,
    Cutout,
    PaddedCrop,
    Policy,
    _autoaugment_step,
    _contrast,
    _shift_hue,
)

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
    torch.manual_seed(0), random.seed(0)
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


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (2, 6000)])
def test_no_step_makes_a_long_image_larger_than_a_few_crops(policy, size, file_bundle, monkeypatch):
    resize, areas = Image.Image.resize, []
    transform = train_transform(file_bundle, policy)
    monkeypatch.setattr(
        Image.Image, "resize", lambda *args, **kw: areas.append(args[1][0] * args[1][1]) or resize(*args, **kw)
    )
    assert transform(Image.new("RGB", size)).shape == (3, 224, 224)
    assert 0 < max(areas) <= 4 * 256**2


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
    torch.manual_seed(0), random.seed(0)
    return [transform(image) for _ in range(number)]


def crops(bundle, padding):
    """Every crop of the padded image, in the transform's format."""
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
    torch.manual_seed(0), random.seed(0)
    seen = set()
    for _ in range(3000):
        black = np.asarray(Cutout()(white))[..., 0] == 0
        rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
        assert black.sum() == len(rows) * len(columns)
        assert len(rows) == rows[-1] - rows[0] + 1
        # the square extends 8 pixels from its centre on each side, and is clipped at the border
        seen.add((int(rows[0]), int(rows[-1]) + 1))
    assert seen == {(max(y - 8, 0), min(y + 8, 32)) for y in range(32)}
    assert np.asarray(white).min() == 255


def test_cifar_autoaugment_cuts_out_and_changes_colours(colour_bundle):
    images = colour_bundle.train.images // 4 + 64  # 64 to 127, so that changed colours are visible
    train = ArrayDataset(images, colour_bundle.train.labels, ["even", "odd"])
    bundle = dataclasses.replace(colour_bundle, train=train, mean=(0.0,) * 3, std=(1.0,) * 3)
    views = (torch.stack(views_of(bundle, "cifar_autoaugment", 60)) * 255).round()
    black = (views == 0).all(1).float().mean((1, 2))
    assert (black >= 8 * 8 / 32**2).all()  # the rest of the hole in a corner
    recoloured = ((views > 0) & ((views < 64) | (views > 127))).flatten(1).any(1)
    assert 20 < recoloured.sum() < 60
    filled = (views == 128).all(1).float().mean((1, 2))  # next to a shifted image
    assert (filled > 0.1).any()


def test_autoaugment_is_the_published_policy():
    """Tests the authors' operations and magnitudes on an image whose pixels distinguish them."""
    assert len(_CIFAR_POLICIES) == 25
    image = Image.fromarray(np.random.RandomState(3).randint(0, 256, (32, 32, 3), dtype=np.uint8))
    for policy in _CIFAR_POLICIES:
        for name, _, tenth in policy:
            level = 0 if tenth is None else tenth / 9
            for picture in (image, image.convert("L")):
                assert _autoaugment_step(picture, name, level).size == (32, 32)
                assert _autoaugment_step(picture, name, level).mode == picture.mode

    def either(name, tenth):
        """The results of both signs."""
        return {_autoaugment_step(image, name, tenth / 9).tobytes() for _ in range(30)}

    assert either("Color", 9) == {F.adjust_saturation(image, factor).tobytes() for factor in (0.1, 1.9)}
    assert either("Brightness", 6) == {F.adjust_brightness(image, factor).tobytes() for factor in (0.4, 1.6)}
    assert either("Posterize", 7) == {F.posterize(image, 5).tobytes()}
    assert either("Solarize", 0) == {image.tobytes()}
    assert either("Rotate", 2) == {F.rotate(image, 60 / 9, fill=[128] * 3).tobytes()}
    for name, axis in (("TranslateX", 0), ("TranslateY", 1)):
        moved = [np.asarray(_autoaugment_step(image, name, 1.0)) for _ in range(30)]
        grey = {tuple((picture == 128).all((axis, 2))) for picture in moved}
        assert {(lines[0], lines[-1]) for lines in grey} == {(True, False), (False, True)}
        assert all(sum(lines) in (14, 15) for lines in grey)  # 150 / 331 of 32 is 14.5


@pytest.mark.parametrize(("policy", "least"), [("simclr", 0.08), ("mae", 0.2)])
def test_crops_from_the_whole_image_down_to_the_least_share(colour_bundle, policy, least):
    transform = train_transform(colour_bundle, policy)
    (crop,) = (step for step in transform.transforms if hasattr(step, "scale") and hasattr(step, "ratio"))
    assert crop.scale == (least, 1.0)
    random.seed(0)
    boxes = np.array([crop.get_params(colour_bundle.train.image(0), crop.scale, crop.ratio) for _ in range(2000)])
    area = boxes[:, 2] * boxes[:, 3] / 32**2
    assert least - 0.02 < area.min() < least + 0.02
    assert area.max() > 0.95


def test_small_crops_and_flips_are_torchvisions(colour_bundle):
    image = colour_bundle.train.image(0)
    expected = {F.crop(F.pad(image, [4]), y, x, 32, 32).tobytes() for y in range(9) for x in range(9)}
    random.seed(0)
    assert {PaddedCrop(32)(image).tobytes() for _ in range(1500)} == expected


def test_colour_steps_are_torchvisions(colour_bundle, grey_bundle):
    for bundle in (colour_bundle, grey_bundle):
        image = bundle.train.image(1)
        for factor in (0.6, 1.0, 1.37):
            assert _contrast(image, factor).tobytes() == ImageEnhance.Contrast(image).enhance(factor).tobytes()
        for turns in (-0.1, -0.001, 0.0, 0.02, 0.1):
            ours, theirs = (np.asarray(picture, dtype=int) for picture in (_shift_hue(image, turns), image))
            if abs(turns) > 1 / 255:
                theirs = np.asarray(F.adjust_hue(image, turns), dtype=int)
            np.testing.assert_array_equal(ours, theirs)


def test_jitter_is_distributed_as_torchvisions(colour_bundle):
    image = colour_bundle.train.image(2).resize((4, 4), Image.Resampling.BOX)
    torch.manual_seed(0), random.seed(0)
    ours, theirs = (
        np.stack([np.asarray(jitter(image), dtype=float) for _ in range(3000)])
        for jitter in (ColorJitter(0.4, hue=0.1), v2.ColorJitter(0.4, 0.4, 0.4, 0.1))
    )
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=4)  # the standard error is about 0.6
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.15)


def test_randaugment_runs_long(colour_bundle):
    """In thousands of draws, timm sometimes posterizes to 0 bits, which some versions of Pillow do not accept."""
    transform = train_transform(colour_bundle, "randaugment", image_size=8)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    image = colour_bundle.train.image(0).resize((8, 8))
    for _ in range(3000):
        transform(image)


def test_simclr_and_imagenet_jitter_and_grey(colour_bundle):
    plain = dataclasses.replace(colour_bundle, mean=(0.0,) * 3, std=(1.0,) * 3)
    grey = [bool((view == view[:1]).all()) for view in views_of(plain, "simclr", 200)]
    assert 20 < sum(grey) < 65  # a fifth
    assert not any(bool((view == view[:1]).all()) for view in views_of(plain, "imagenet", 50))


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "none"])
def test_augmentation_varies(colour_bundle, policy):
    views = torch.stack(views_of(colour_bundle, policy, 12))
    assert len(views.unique(dim=0)) > 6


def test_bad_arguments(colour_bundle, grey_bundle):
    with pytest.raises(ValueError, match=r"policy: expected one of none, basic, .*, got 'mixup'"):
        train_transform(colour_bundle, "mixup")
    with pytest.raises(ValueError, match="image_size: expected at least 1 pixel, got 0"):
        eval_transform(colour_bundle, 0)
    for policy in POLICIES:
        with pytest.raises(ValueError, match="image_size: expected at least 1 pixel, got 0"):
            train_transform(colour_bundle, policy, image_size=0)
    with pytest.raises(ValueError, match=r"channels: expected one of \[3\], got 1"):
        train_transform(colour_bundle, "none", channels=1)
    with pytest.raises(ValueError, match=r"channels: expected one of \[1, 3\], got 4"):
        eval_transform(grey_bundle, channels=4)
