import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ltfast
from ltfast.ops import class_sums
from ltfast.ops.class_sums import class_sums_op

# rows, width, classes
SHAPES = [(1, 1, 1), (1, 2, 3), (37, 17, 5), (64, 128, 10), (201, 31, 23), (5, 300, 1), (130, 3, 40), (3, 700, 2)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def expected(features, labels, classes):
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels.long().cpu(), features.detach().double().cpu())
    return sums, labels.cpu().bincount(minlength=classes)


def check(features, labels, classes):
    sums, counts = class_sums(features, labels, classes)
    exact_sums, exact_counts = expected(features, labels, classes)
    assert sums.dtype == (torch.float64 if features.dtype == torch.float64 else torch.float32)
    tolerance = 1e-13 if features.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(sums.double().cpu(), exact_sums, rtol=tolerance, atol=10 * tolerance)
    assert torch.equal(counts.cpu(), exact_counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_counts(place, shape, dtype):
    rows, width, classes = shape
    if place.interpreted:  # it takes each class's rows one by one
        classes = min(classes, 5)
    labels = torch.randint(classes, (rows,), device=place.device)
    check(torch.randn(rows, width, device=place.device).to(dtype), labels, classes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(native_isa, dtype):
    check(torch.randn(101, 67).to(dtype), torch.randint(9, (101,)), 9)


def test_strides_and_integer_types(place):
    wide = torch.randn(40, 60, device=place.device)
    for features in (wide[:, ::3], wide[::2, 5:], wide.t(), wide[:1].expand(12, -1)):
        for dtype in (torch.int64, torch.int32, torch.uint8):
            check(features, torch.randint(7, (len(features),), device=place.device).to(dtype), 7)
    check(wide, torch.randint(7, (80,), device=place.device)[::2], 7)


def test_gradient(place):
    features = torch.randn(23, 5, device=place.device, requires_grad=True)
    labels = torch.randint(4, (23,), device=place.device)
    sums, _ = class_sums(features, labels, 6)
    incoming = torch.randn_like(sums)
    (gradient,) = torch.autograd.grad(sums, features, incoming)
    assert torch.equal(gradient, incoming[labels])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradcheck(backend):
    features, labels = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.randint(4, (6,))
    with ltfast.backend(backend):
        assert torch.autograd.gradcheck(lambda x: class_sums(x, labels, 4)[0], features)
        assert torch.autograd.gradgradcheck(lambda x: class_sums(x, labels, 4)[0], features)


def test_the_same_bits_every_time(place):
    rows = 70 if place.interpreted else 999
    features = torch.randn(rows, 65, device=place.device)
    labels = torch.randint(3, (rows,), device=place.device)
    first = class_sums(features, labels, 3)[0]
    assert all(torch.equal(first, class_sums(features, labels, 3)[0]) for _ in range(3))


@given(rows=st.integers(1, 40), width=st.integers(1, 20), classes=st.integers(1, 30))
@settings(deadline=None)
def test_nothing_is_lost(rows, width, classes):
    features, labels = torch.randn(rows, width, dtype=torch.float64), torch.randint(classes, (rows,))
    sums, counts = class_sums(features, labels, classes)
    torch.testing.assert_close(sums.sum(0), features.sum(0))
    assert counts.sum() == rows


def test_a_bad_feature_stays_in_its_class(place):
    features = torch.ones(4, 3, device=place.device)
    features[1] = torch.nan
    sums, _ = class_sums(features, torch.tensor([0, 1, 2, 0], device=place.device), 3)
    assert sums[1].isnan().all()
    assert sums[[0, 2]].isfinite().all()


def test_opcheck_and_compile():
    features, labels = torch.randn(9, 4, requires_grad=True), torch.randint(3, (9,))
    torch.library.opcheck(class_sums_op, (features, labels, 3))
    compiled = torch.compile(lambda x: class_sums(x, labels, 3)[0].square().sum(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), class_sums(features, labels, 3)[0].square().sum())


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_labels_of_a_byte_and_more_classes_than_it_holds(backend):
    labels = torch.tensor([0, 255, 7], dtype=torch.uint8)
    with ltfast.backend(backend):
        _, counts = class_sums(torch.randn(3, 2), labels, 300)
    assert counts.nonzero().flatten().tolist() == [0, 7, 255]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input(backend):
    features, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with ltfast.backend(backend):
        with pytest.raises(ValueError, match=r"features has shape \(3,\): expected \(number, width\)"):
            class_sums(features[0], labels, 3)
        with pytest.raises(ValueError, match=r"labels has shape \(3,\): expected \(4,\)"):
            class_sums(features, labels[:3], 3)
        with pytest.raises(TypeError, match=r"labels has dtype torch\.float32: expected integer labels"):
            class_sums(features, labels.float(), 3)
        with pytest.raises(ValueError, match="num_classes is 0: expected at least 1"):
            class_sums(features, labels, 0)
        with pytest.raises(TypeError, match=r"num_classes is 2\.5: expected an integer"):
            class_sums(features, labels, 2.5)
        for bad in (-1, 3):
            labels[2] = bad
            with pytest.raises(ValueError, match=rf"labels\[2\] is {bad}: expected a label in \[0, 3\)"):
                class_sums(features, labels, 3)
