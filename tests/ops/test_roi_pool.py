import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

import ltfast
from ltfast.ops import patch_roi_pool
from ltfast.ops.roi_pool import reference, roi_pool_backward_op, roi_pool_op
from ltfast.ops.roi_pool.settings import RoiPoolSettings

SHAPES = [(2, 5, 7, 7, 3), (1, 1, 1, 1, 1), (1, 67, 1, 37, 5), (1, 2, 13, 1, 17)]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def make(images, channels, height, width, number, device="cpu", dtype=torch.float32):
    features = torch.randn(images, channels, height, width, device=device).to(dtype)
    return features, make_boxes(images, number, height, width).to(device)


def make_boxes(images, number, height, width):
    """The boxes lie inside, across the border and outside; each fourth has no area."""
    corners = torch.rand(images, number, 2, 2, dtype=torch.float64) * 2 - 0.5
    boxes = torch.cat(((corners.amin(2)), corners.amax(2)), 2) * torch.tensor([width, height, width, height])
    boxes[:, 3::4, 2:] = boxes[:, 3::4, :2]
    return boxes.float()


def by_torchvision(features, boxes, spatial_scale=1.0, output_size=2, sampling_ratio=-1, aligned=False):
    pooled = torchvision.ops.roi_align(
        features.double().cpu(), list(boxes.double().cpu()), output_size, spatial_scale, sampling_ratio, aligned
    )
    return pooled.mean((2, 3)).view(*boxes.shape[:2], -1)


def check(features, boxes, **options):
    """Compares the values and the gradient with torchvision's in float64."""
    features = features.detach().requires_grad_()
    pooled = patch_roi_pool(features, boxes, **options)
    incoming = torch.randn_like(pooled)
    (gradient,) = torch.autograd.grad(pooled, features, incoming)
    exact_features = features.detach().double().cpu().requires_grad_()
    exact = by_torchvision(exact_features, boxes, **options)
    (exact_gradient,) = torch.autograd.grad(exact, exact_features, incoming.double().cpu())
    tolerance = TOLERANCE[features.dtype]
    for ours, expected in ((pooled, exact), (gradient, exact_gradient)):
        assert ours.dtype == features.dtype
        torch.testing.assert_close(ours.double().cpu(), expected, rtol=tolerance, atol=tolerance)
    return gradient


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(place, shape, dtype):
    check(*make(*shape, place.device, dtype))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_instruction_set(native_isa, dtype, channels_last):
    features, boxes = make(2, 1027, 5, 7, 4, dtype=dtype)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    check(features, boxes, spatial_scale=0.7, aligned=True)


@pytest.mark.parametrize(
    "options",
    [
        {"spatial_scale": 0.25, "output_size": 1},
        {"output_size": 3, "aligned": True},
        {"sampling_ratio": 3, "output_size": 3, "spatial_scale": 1.7},
        {"sampling_ratio": 1, "aligned": True},
    ],
    ids=str,
)
def test_options(place, options):
    check(*make(1, 3, 4, 8, 8, place.device), **options)


def test_box_corner_cases(place):
    """Some samples lie exactly on the last position that counts, and some boxes are inverted."""
    features = torch.randn(1, 2, 4, 6, device=place.device)
    boxes = [[-2, -2, 0, 0], [5, 3, 7, 5], [-3, -1, 9, 5], [6, 4, 8, 6], [2, 2, 2, 2], [-9, -9, -5, -5], [4, 3, 1, 0]]
    boxes = torch.tensor([boxes], device=place.device, dtype=torch.float32)
    for options in ({}, {"aligned": True}, {"output_size": 1}, {"aligned": True, "sampling_ratio": 2}):
        check(features, boxes, **options)


@given(
    shape=st.tuples(*(st.integers(1, k) for k in (2, 7, 13, 13, 6))),
    options=st.fixed_dictionaries(
        {
            "aligned": st.booleans(),
            "sampling_ratio": st.sampled_from((-1, 1, 2, 3)),
            "output_size": st.integers(1, 3),
            "spatial_scale": st.sampled_from((1.0, 0.5, 1.5)),
        }
    ),
    grow=st.sampled_from((0.3, 1.0, 20.0)),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=200)
def test_any_box(shape, options, grow, channels_last, seed):
    torch.manual_seed(seed)
    features, boxes = make(*shape)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    boxes *= grow
    check(features, boxes, **options)
    exact = reference.roi_pool(features.double(), boxes, RoiPoolSettings(**options))
    torch.testing.assert_close(by_torchvision(features, boxes, **options), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [-1, 1, 3])
def test_coordinates_up_to_the_largest_number(place, ratio):
    """The results are those of float64, where no product of coordinates overflows, and torchvision's where it counts
    the samples."""
    far = [1e9, 1e17, 1e20, 1e30, 1e38, 3e38]
    boxes = (
        [[0, 0, x, 3] for x in far] + [[-1, y, 4, 1] for y in far] + [[-x, 0, 4, x] for x in far] + [[1e-45, 0, 3, 2]]
    )
    boxes = torch.tensor([boxes], dtype=torch.float32)
    features = torch.rand(1, 2, 4, 6)
    for aligned in (False, True):
        options = {"sampling_ratio": ratio, "aligned": aligned}
        pooled = patch_roi_pool(features.to(place.device), boxes.to(place.device), **options).cpu()
        with ltfast.backend("reference"):
            plain = patch_roi_pool(features, boxes, **options)
            exact = patch_roi_pool(features.double(), boxes.double(), **options)
        torch.testing.assert_close(pooled.double(), exact, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(plain.double(), exact, rtol=1e-5, atol=1e-6)
        if ratio > 0:
            torch.testing.assert_close(exact, by_torchvision(features, boxes, **options), rtol=1e-12, atol=1e-12)


@given(box=st.lists(st.floats(width=32), min_size=4, max_size=4), ratio=st.sampled_from((-1, 2, 10**9)))
@settings(deadline=None, max_examples=200)
def test_no_box_does_harm(box, ratio):
    features = torch.ones(1, 1, 3, 5)
    pooled = patch_roi_pool(features, torch.tensor([[box, [0, 0, 2, 2]]]), sampling_ratio=ratio, aligned=True)
    if torch.tensor(box).isfinite().all():
        assert 0 <= pooled[0, 0] <= 1.0001
    else:
        assert pooled[0, 0].isnan()
    torch.testing.assert_close(pooled[0, 1, 0], torch.tensor(1.0))


def test_the_cost_of_a_box_is_bounded(place):
    """A box may be 10^9 pixels wide, and a bin may have as many samples."""
    features = torch.ones(1, 1, 3, 5, device=place.device)
    boxes = torch.tensor([[[-1e9, -1e9, 1e9, 1e9], [-3e38, -3e38, 3e38, 3e38]]], device=place.device)
    assert (patch_roi_pool(features, boxes).abs() < 1e-6).all()
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]], device=place.device)
    torch.testing.assert_close(patch_roi_pool(features, boxes, sampling_ratio=10**9), torch.ones_like(boxes[..., :1]))


def test_a_box_that_is_not_finite_stays_in_its_row(place):
    features, boxes = make(2, 3, 4, 4, 4, place.device)
    clean = patch_roi_pool(features, boxes)
    for column, bad in enumerate((torch.nan, torch.inf, -torch.inf, torch.nan)):
        boxes[0, column, column] = bad
    pooled = patch_roi_pool(features, boxes)
    assert pooled[0].isnan().all()
    assert torch.equal(pooled[1], clean[1])
    features.requires_grad_()
    (gradient,) = torch.autograd.grad(patch_roi_pool(features, boxes)[1].sum(), features)
    assert gradient[1].isfinite().all()


def test_memory_formats(place):
    wide, boxes = make(1, 6, 4, 8, 3, place.device)
    last = wide.contiguous(memory_format=torch.channels_last)
    assert check(last, boxes).is_contiguous(memory_format=torch.channels_last)
    for features in (wide, wide[:, ::2, :, 3:], wide.transpose(2, 3), last[:, 1:4], wide[:, :1].expand(1, 2, 4, 8)):
        assert check(features, boxes).is_contiguous()


def test_box_dtypes(place):
    features, boxes = make(1, 2, 4, 4, 3, place.device)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        check(features, boxes.to(dtype))
    check(features.double(), boxes)


def test_more_boxes_than_a_block_and_none(place):
    check(*make(1, 2, 4, 4, 40, place.device))
    features, boxes = make(1, 3, 4, 4, 0, place.device)
    features.requires_grad_()
    pooled = patch_roi_pool(features, boxes)
    assert pooled.shape == (1, 0, 3)
    (gradient,) = torch.autograd.grad(pooled.sum(), features)
    assert torch.equal(gradient, torch.zeros_like(features))


def test_the_same_bits_every_time(place):
    channels = 3 if place.interpreted else 2050
    features, boxes = make(2, channels, 4, 7, 5, place.device)
    features.requires_grad_()

    def step():
        pooled = patch_roi_pool(features, boxes)
        return pooled, torch.autograd.grad(pooled, features, incoming)[0]

    incoming = torch.randn(2, 5, channels, device=place.device)
    before = torch.are_deterministic_algorithms_enabled()
    first = step()
    try:
        torch.use_deterministic_algorithms(True)
        assert all(torch.equal(x, y) for x, y in zip(first, step(), strict=True))
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradcheck(backend):
    features, boxes = make(2, 3, 4, 3, 2, dtype=torch.float64)
    features.requires_grad_()
    with ltfast.backend(backend):
        assert torch.autograd.gradcheck(patch_roi_pool, (features, boxes))
        assert torch.autograd.gradgradcheck(patch_roi_pool, (features, boxes))


def test_opcheck_and_compile():
    features, boxes = make(2, 3, 4, 5, 2)
    for x in (features, features.contiguous(memory_format=torch.channels_last)):
        x.requires_grad_()
        torch.library.opcheck(roi_pool_op, (x, boxes, 1.0, 2, -1, False))
        torch.library.opcheck(
            roi_pool_backward_op,
            (torch.randn(2, 2, 3, requires_grad=True), boxes, 4, 5, x is not features, "native", 1.0, 2, -1, False),
        )
        compiled = torch.compile(
            lambda x: patch_roi_pool(x.relu(), boxes).square().sum(), fullgraph=True, backend="aot_eager"
        )
        (gradient,) = torch.autograd.grad(compiled(x), x)
        (expected,) = torch.autograd.grad(patch_roi_pool(x.relu(), boxes).square().sum(), x)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.ones(2, 3, 4)}, ValueError, r"features has shape \(2, 3, 4\): expected \(batch, channels"),
        ({"features": [1.0]}, TypeError, "features is a list: expected a tensor"),
        ({"features": torch.ones(2, 3, 4, 5).long()}, TypeError, r"features has dtype torch\.int64: expected float32"),
        ({"features": torch.ones(0, 3, 4, 5)}, ValueError, r"features has shape \(0, 3, 4, 5\): .* none of them 0"),
        ({"boxes": torch.ones(2, 4)}, ValueError, r"boxes has shape \(2, 4\): expected \(batch, boxes, 4\)"),
        ({"boxes": torch.ones(3, 1, 4)}, ValueError, r"boxes has shape \(3, 1, 4\): expected \(2, boxes, 4\)"),
        ({"boxes": torch.ones(2, 1, 5)}, ValueError, r"boxes has shape \(2, 1, 5\): expected \(2, boxes, 4\)"),
        ({"boxes": torch.ones(2, 1, 4).int()}, TypeError, r"boxes has dtype torch\.int32: expected float32"),
        ({"boxes": torch.ones(2, 1, 4, device="meta")}, ValueError, "boxes is on meta: expected the device of .*, cpu"),
        ({"boxes": torch.ones(2, 1, 4, requires_grad=True)}, ValueError, "boxes requires a gradient"),
        ({"spatial_scale": 0.0}, ValueError, r"spatial_scale is 0\.0: expected a number over 0"),
        ({"spatial_scale": float("nan")}, ValueError, "spatial_scale is nan: expected a number over 0"),
        ({"output_size": 0}, ValueError, "output_size is 0: expected 1 or more"),
        ({"output_size": (2, 2)}, TypeError, r"output_size is \(2, 2\): expected an integer"),
        ({"sampling_ratio": -2}, ValueError, "sampling_ratio is -2: expected -1 or more"),
        ({"sampling_ratio": 1.5}, TypeError, r"sampling_ratio is 1\.5: expected an integer"),
    ],
)
def test_bad_input(backend, change, error, message):
    arguments = {"features": torch.ones(2, 3, 4, 5), "boxes": torch.ones(2, 1, 4)} | change
    with ltfast.backend(backend), pytest.raises(error, match=message):
        patch_roi_pool(**arguments)
