"""Views whose last steps run on a batch equal those of the CPU for the same draws.

They are equal up to float rounding except for the noise of random erasing, which a device gets in steps of 1 / 32, cut
at -4 and 127 / 32.
"""

import pickle
from contextlib import contextmanager, nullcontext
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, default_collate

from fixtures import one_thread  # noqa: F401
from ltfast.data import (
    ArrayDataset,
    DataBundle,
    FileDataset,
    NumberedBatches,
    PatchViews,
    SeededViews,
    device_views,
    make_sampler,
    train_transform,
)
from ltfast.data.device_steps import NOISE_LEVELS
from ltfast.data.patches import Blur
from ltfast.data.steps import DevicePart, HostPart
from ltfast.data.transforms import ColorJitter, Policy

POLICIES = get_args(Policy)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOGRAPHS = load_sample_images().images


def squares(size, mode, number=6):
    """Parts of photographs, (number, size, size, channels)."""
    random = np.random.default_rng(0)
    result = []
    for index in range(number):
        photograph = Image.fromarray(PHOTOGRAPHS[index % 2]).convert(mode)
        x, y, side = random.integers(0, 200), random.integers(0, 200), random.integers(size, 220)
        result.append(np.array(photograph.resize((size, size), box=(x, y, x + side, y + side))))
    return np.stack(result)


def of_arrays(images):
    data = ArrayDataset(images, torch.arange(len(images)) % 2, ["a", "b"])
    channels = 1 if images.ndim == 3 else 3
    return DataBundle(data, data, MEAN[:channels], STD[:channels], images.shape[1], channels)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Colour and greyscale arrays, arrays of an odd size, and files of several sizes."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(1).integers(0, 256, (6, 37, 37, 3), dtype=np.uint8)
    pictures = [
        Image.fromarray(PHOTOGRAPHS[0]),
        Image.fromarray(PHOTOGRAPHS[1][:101, :77]).convert("L"),
        Image.fromarray(noise[0]),
    ]
    paths = [folder / f"{number}.png" for number in range(3)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    files = FileDataset(paths * 2, torch.arange(6) % 2, ["a", "b"])
    return {
        "colour": of_arrays(squares(32, "RGB")),
        "grey": of_arrays(squares(8, "L")),
        "odd": of_arrays(noise),
        "files": DataBundle(files, files, MEAN, STD, image_size=91, channels=3),
    }


def flat(parts):
    for part in parts:
        if isinstance(part, torch.Tensor):
            yield part
        else:
            yield from flat(part)


@contextmanager
def never_waiting():
    """Raises an error if the CPU waits for a GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def both(bundle, transforms, number=48, device="cpu"):
    """The views of so many draws, from the CPU and from a device."""
    keys = [(draw, draw % len(bundle.train)) for draw in range(number)]
    views = SeededViews(bundle.train, transforms, seed=5)
    host, on_device = device_views(bundle.train, transforms, seed=5)
    *expected, labels = default_collate([views[key] for key in keys])
    *parts, same_labels = default_collate([host[key] for key in keys])
    assert torch.equal(labels, same_labels)
    on_device, parts = on_device.to(device), send_to_device(parts, device)
    with never_waiting() if device == "cuda" else nullcontext():
        views = on_device(parts)
    on_device.to("cpu")  # it may share the images with other tests
    return list(flat(expected)), list(flat(views))


def check(bundle, transforms, **options):
    for expected, actual in zip(*both(bundle, transforms, **options), strict=True):
        assert actual.dtype == expected.dtype
        assert actual.is_contiguous()
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "randaugment"])
@pytest.mark.parametrize("kind", ["colour", "grey", "odd", "files"])
def test_each_policy_gives_the_cpus_views(bundles, kind, policy):
    bundle = bundles[kind]
    check(bundle, [train_transform(bundle, policy)])
    check(bundle, [train_transform(bundle, policy, image_size=21)])
    if bundle.channels == 1:
        check(bundle, [train_transform(bundle, policy, channels=3)])


@pytest.mark.parametrize("kind", ["colour", "grey", "odd", "files"])
@pytest.mark.parametrize("channels", [None, 3])
def test_the_noise_of_random_erasing_is_rounded(bundles, kind, channels):
    """The second view draws its numbers after the noise of the first."""
    bundle = bundles[kind]
    transform = train_transform(bundle, "randaugment", channels=channels)
    for expected, actual in zip(*both(bundle, [transform, transform]), strict=True):
        within = expected.clamp(-128 / NOISE_LEVELS, 127 / NOISE_LEVELS)
        torch.testing.assert_close(actual, within, rtol=0, atol=0.5 / NOISE_LEVELS + 1e-5)
        differ = (actual - expected).abs() > 1e-5
        assert 0.01 < differ.float().mean() < 0.1  # a quarter of the images lose a sixth of their pixels


@pytest.mark.parametrize("policy", ["basic", "cifar", "dscl"])
@pytest.mark.parametrize("patches", [0, 3])
@pytest.mark.parametrize("kind", ["colour", "grey", "files"])
def test_patches_are_the_cpus(bundles, kind, patches, policy):
    """Files have 91 pixels: above 64, views are blurred."""
    bundle = bundles[kind]
    views = PatchViews(bundle, policy, bundle.image_size, patches=patches, patch_size=9, scale=(0.05, 0.6))
    check(bundle, [views], number=24)


def test_views_of_several_policies(bundles):
    bundle = bundles["colour"]
    check(bundle, [train_transform(bundle, policy) for policy in ("cifar_autoaugment", "simclr", "basic")])


def test_photographs_of_full_size(bundles):
    bundle = bundles["files"]
    check(bundle, [train_transform(bundle, "simclr", image_size=224)], number=6)
    check(bundle, [PatchViews(bundle, "dscl", 224, patches=2, patch_size=64, scale=(0.05, 0.6))], number=6)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["colour", "grey", "files"])
def test_a_gpu_gives_the_cpus_views(bundles, kind):
    """A GPU may round a pixel to the level beside it."""
    bundle = bundles[kind]
    views = PatchViews(bundle, "dscl", bundle.image_size, patches=3, patch_size=9, scale=(0.05, 0.6))
    policies = [train_transform(bundle, policy) for policy in POLICIES if policy != "randaugment"]
    held = [train_transform(bundle, policy) for policy in ("none", "basic", "cifar")]
    for transforms in ([views], policies, held):
        for expected, actual in zip(*both(bundle, transforms, device="cuda"), strict=True):
            levels = (actual.cpu() - expected).abs() * max(STD) * 255
            assert levels.max() < 1.1
            assert (levels > 0.01).float().mean() < 1e-3


def split_step(step, images, seed):
    """The step's results for each image from Pillow, and from a batch, (B, C, H, W)."""
    import random

    random.seed(seed)
    one_by_one = np.stack([np.array(step(Image.fromarray(image))) for image in images])
    random.seed(seed)
    host = HostPart([], [step])
    parts = [host(Image.fromarray(image)) for image in images]
    return torch.from_numpy(one_by_one).permute(0, 3, 1, 2).float(), DevicePart([step])(default_collate(parts))


def test_colours_of_every_kind_have_pillows_levels():
    """All hues and degrees of saturation: a 97th of all colours, in each of 12 orders and strengths of jitter."""
    colours = np.arange(0, 2**24, 97)[: 172 * 1000].astype(np.uint32)
    image = np.stack([colours & 255, colours >> 8 & 255, colours >> 16], -1).astype(np.uint8).reshape(172, 1000, 3)
    for seed in range(12):
        expected, actual = split_step(ColorJitter(0.4, hue=0.1), image[None], seed)
        difference = (actual - expected).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-4


def test_blur_is_pillows():
    images = squares(50, "RGB", number=40)
    expected, actual = split_step(Blur(), images, 0)
    assert (actual - expected).abs().max() <= 1
    assert (actual != expected).float().mean() < 1e-3
    strongest = Image.fromarray(images[0]).filter(ImageFilter.GaussianBlur(2.0))
    assert (torch.from_numpy(np.array(strongest)).float() - actual[0].permute(1, 2, 0)).abs().max() > 0


def test_a_view_does_not_depend_on_the_rest_of_its_batch(bundles):
    bundle = bundles["files"]
    views, device = device_views(bundle.train, [train_transform(bundle, "simclr")], seed=0)
    items = [views[draw, draw] for draw in range(4)]
    *parts, _ = default_collate(items)
    (together,) = device(parts)
    for item, view in zip(items, together, strict=True):
        *parts, _ = default_collate([item])
        assert torch.equal(device(parts)[0][0], view)


def test_draws_have_the_cpus_distribution(bundles):
    """Different seeds: the moments of the views agree within their standard errors."""
    bundle = bundles["colour"]
    transform = train_transform(bundle, "simclr", image_size=4)
    views = SeededViews(bundle.train, [transform], seed=1)
    host, device = device_views(bundle.train, [transform], seed=2)
    expected, _ = default_collate([views[draw, 0] for draw in range(1500)])
    *parts, _ = default_collate([host[draw, 0] for draw in range(1500)])
    (actual,) = device(parts)
    error = expected.std(0) * (2 / 1500) ** 0.5
    assert ((actual.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(actual.std(0), expected.std(0), rtol=0.15, atol=0)


@pytest.mark.parametrize("policy", ["basic", "simclr"])
def test_workers_change_nothing(bundles, policy):
    bundle = bundles["colour"]
    views, device = device_views(bundle.train, [train_transform(bundle, policy)] * 2, seed=0)
    sampler = make_sampler("instance", bundle.train.labels, num_classes=2, seed=0)
    batches = NumberedBatches(sampler, batch_size=3)
    batches.set_epoch(1)
    loaded = [list(DataLoader(views, batch_sampler=batches, num_workers=workers)) for workers in (0, 2)]
    for alone, helped in zip(*loaded, strict=True):
        assert all(map(torch.equal, flat(device(alone[:-1])), flat(device(helped[:-1]))))


def test_images_in_arrays_stay_on_the_device(bundles):
    """The host then gives indices and numbers only. All stages share the images."""
    bundle = bundles["colour"]
    cifar, simclr = (train_transform(bundle, policy) for policy in ("cifar", "simclr"))
    views, device = device_views(bundle.train, [cifar, cifar], seed=0)
    (index, numbers), _, label = views[7, 4]
    assert (index.item(), numbers.shape, label) == (4, (3,), bundle.train.labels[4])
    assert len(pickle.dumps(views)) < 20_000  # a worker gets no images
    assert device.held.images.shape == bundle.train.images.shape
    assert device_views(bundle.train, [cifar], seed=0)[1].held is device.held
    for transforms in ([simclr], [cifar, simclr], [train_transform(bundle, "cifar", image_size=16)]):
        views, device = device_views(bundle.train, transforms, seed=0)
        assert device.held is None
        (pixels, _), *_ = views[7, 4]
        assert pixels.dtype == torch.uint8


def test_images_that_cannot_be_written_are_held():
    bundle = of_arrays(squares(32, "RGB"))
    bundle.train.images.setflags(write=False)
    check(bundle, [train_transform(bundle, "cifar")])


def test_other_transforms_are_refused():
    data = ArrayDataset(np.zeros((2, 8, 8), np.uint8), torch.arange(2), ["a", "b"])
    with pytest.raises(TypeError, match="transforms: expected results of train_transform"):
        device_views(data, [lambda image: image], seed=0)
    with pytest.raises(ValueError, match="transforms: expected at least one"):
        device_views(data, [], seed=0)
    with pytest.raises(ValueError, match="seed: expected at least 0"):
        device_views(data, [train_transform(DataBundle(data, data, (0.5,), (0.2,), 8, 1), "basic")], seed=-1)
