"""One process's share of the classes; tests/distributed/test_class_parallel.py puts the shares together."""

import pytest
import torch
from torch.nn import functional as F

import ltfast
from ltfast.ops import (
    agcl,
    class_parallel_agcl,
    class_parallel_linear_agcl,
    class_parallel_linear_balanced_bce,
    class_parallel_linear_cross_entropy,
    class_parallel_vmf_cross_entropy,
    linear_agcl,
    linear_balanced_bce,
    linear_cross_entropy,
    vmf_cross_entropy,
)
from ltfast.ops.agcl import agcl_share_gradient_op, agcl_share_op, reference
from ltfast.ops.agcl.settings import AgclShareSettings
from ltfast.ops.linear import agcl_share
from ltfast.ops.linear.agcl_share import linear_agcl_share
from ops.compare import loss_and_gradient, opcheck, relative_error, row_error, tolerances

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EXPONENTS = [(0.0, 4.0), (0.5, 8.0), (1.0, 0.0), (2.0, 1.0), (0.3, 1.7), (0.0, 2.0)]
REDUCTIONS = ["mean", "sum", "none", "mean", "sum", "none"]
NOISE_ERROR = 4e-6  # the noise of the backends differs by up to 2e-7, which the scale of 20 multiplies


def problem(rows, classes, dtype=torch.float32, device="cpu"):
    cosine = (torch.rand(rows, classes, dtype=torch.float64) * 2 - 1).to(dtype).to(device)
    return cosine, torch.randint(classes, (rows,), device=device), torch.rand(classes, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("classes", "start"), [(1, 0), (1008, 1023), (2050, 2)])
def test_a_share_of_the_classes(place, classes, start, dtype):
    """Checks its statistics and the gradient of a function of them; labels are in it and in other shares."""
    cosine, _, noise = problem(6, classes, dtype, place.device)
    target = torch.tensor([0, classes - 1, -1, classes, -(2**40), classes // 2], device=place.device)
    seed = torch.tensor([123456789012345], device=place.device)
    for class_noise, gamma in ((noise, 4.0),) if classes == 1 else ((noise, 4.0), (None, 1.7)):
        tensors = (target, class_noise, None if class_noise is None else seed)
        settings = AgclShareSettings(start, 20.0, 0.1, gamma)
        incoming = torch.randn(6, 5, dtype=torch.float64, device=place.device)
        incoming[:, 0] = 0
        actual = loss_and_gradient(lambda x, t=tensors, s=settings: agcl_share_op(x, *t, *s), cosine, incoming)
        expected = loss_and_gradient(
            lambda x, t=tensors, s=settings: reference.agcl_share(x, *t, s), cosine.double(), incoming
        )
        for tolerance, one, other in zip(tolerances(dtype), actual, expected, strict=True):
            assert row_error(one, other) < 10 * tolerance + NOISE_ERROR * (class_noise is not None)
        assert actual[1].dtype == dtype


@pytest.mark.parametrize(("exponents", "reduction"), list(zip(EXPONENTS, REDUCTIONS, strict=True)), ids=str)
def test_one_process_is_the_whole(place, exponents, reduction):
    gamma_pos, gamma_neg = exponents
    rows = place.rows(13)
    cosine, target, class_noise = problem(rows, 67, device=place.device)
    options = {"weight_neg": 0.3, "gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "reduction": reduction}
    incoming = torch.rand(rows, device=place.device) + 0.5 if reduction == "none" else torch.tensor(1.7)

    def run(function, *more):
        def loss(x):
            generator = torch.Generator(x.device).manual_seed(2)
            return function(x, target, *more, class_noise, generator=generator, **options)

        return loss_and_gradient(loss, cosine, incoming)

    (loss, gradient), (whole_loss, whole_gradient) = run(class_parallel_agcl, 67), run(agcl)
    assert loss.dtype == whole_loss.dtype
    assert relative_error(loss, whole_loss) < 4e-6
    assert row_error(gradient, whole_gradient) < 2e-5


@pytest.fixture
def _small_blocks(monkeypatch):
    """Blocks of 10 classes, which do not begin where the noise does."""
    monkeypatch.setattr(agcl_share, "block_classes", lambda rows, classes, device: min(classes, 10))


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 1023])
def test_a_share_without_its_cosines(place, start, dtype):
    """Its statistics and gradients are those of the share of the cosines."""
    features, weight = (F.normalize(torch.randn(n, 8, dtype=torch.float64), dim=1) for n in (6, 67))
    features, weight = (x.to(dtype).to(place.device).requires_grad_() for x in (features, weight))
    target = torch.tensor([0, 66, -1, 67, 10, 33], device=place.device)
    seed, noise = torch.tensor([12345], device=place.device), torch.rand(67, device=place.device)
    incoming = torch.randn(6, 5, dtype=torch.float64, device=place.device)
    incoming[:, 0] = 0
    for class_noise, gamma in ((noise, 4.0), (None, 1.7)):
        tensors = (target, class_noise, None if class_noise is None else seed)
        settings = AgclShareSettings(start, 20.0, 0.1, gamma)
        actual = linear_agcl_share(features, weight, *tensors, settings)
        expected = reference.agcl_share(F.linear(features, weight), *tensors, settings)
        tolerance, of_gradient = tolerances(dtype)
        error = tolerance if dtype.itemsize > 2 else of_gradient  # the reference's cosines are summed in another order
        assert row_error(actual, expected) < 10 * error + NOISE_ERROR * (class_noise is not None)
        found, exact = (torch.autograd.grad(x, [features, weight], incoming) for x in (actual, expected))
        for one, other, x in zip(found, exact, (features, weight), strict=True):
            assert one.dtype == dtype
            assert one.shape == x.shape
            assert row_error(one, other) < 10 * of_gradient + NOISE_ERROR * (class_noise is not None)


def test_blocks_of_classes():
    assert agcl_share.block_classes(4096, 1_000_000, "cpu") == 1024
    assert agcl_share.block_classes(1000, 1_000_000, "cuda") == 8384  # a multiple of 8
    assert agcl_share.block_classes(10**6, 1_000_000, "cpu") == 128
    assert agcl_share.block_classes(256, 10, "cpu") == 10


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_one_process_is_the_whole_without_logits(place, reduction, dtype):
    rows = place.rows(13)
    features, weight, bias = (
        torch.randn(*shape, dtype=dtype, device=place.device).requires_grad_() for shape in ((rows, 8), (67, 8), (67,))
    )
    _, target, vector = problem(rows, 67, device=place.device)
    target[::5] = -100

    def noise():
        return torch.Generator(place.device).manual_seed(2)

    calls = {
        "agcl": (
            lambda **o: class_parallel_linear_agcl(features, weight, target, 67, vector, generator=noise(), **o),
            lambda **o: linear_agcl(features, weight, target, vector, generator=noise(), **o),
        ),
        "balanced_bce": (
            lambda **o: class_parallel_linear_balanced_bce(features, weight, bias, target, 67, vector, **o),
            lambda **o: linear_balanced_bce(features, weight, bias, target, vector, **o),
        ),
        "cross_entropy": (
            lambda **o: class_parallel_linear_cross_entropy(features, weight, bias, target, 67, adjustment=vector, **o),
            lambda **o: linear_cross_entropy(features, weight, bias, target, adjustment=vector, **o),
        ),
    }
    for name, (split, whole) in calls.items():
        options = {"reduction": reduction, **({} if name == "agcl" else {"label_smoothing": 0.2})}
        tensors = [features, weight] if name == "agcl" else [features, weight, bias]
        loss, expected = split(**options), whole(**options)
        assert loss.dtype == expected.dtype
        assert relative_error(loss, expected) < 1e-5
        for one, other in zip(*(torch.autograd.grad(x.sum(), tensors) for x in (loss, expected)), strict=True):
            assert row_error(one.view(len(one), -1), other.view(len(one), -1)) < 1e-4, name


@pytest.mark.parametrize("magnitude", [1e4, 3.4e38])
@pytest.mark.parametrize("exponents", EXPONENTS[:3], ids=str)
def test_finite_logits_give_finite_results(place, magnitude, exponents):
    gamma_pos, gamma_neg = exponents
    cosine = torch.tensor([[1.0, -1, 0, 0.5], [-1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], device=place.device)
    target, options = torch.arange(4, device=place.device), {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg}
    loss, gradient = loss_and_gradient(
        lambda x: class_parallel_agcl(x, target, 4, reduction="none", **options), cosine * magnitude
    )
    whole = agcl(cosine * magnitude, target, reduction="none", **options)
    assert gradient.isfinite().all()
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_finite_are_nan_alone(place):
    cosine, target, _ = problem(5, 9, device=place.device)
    cosine[1, 2], cosine[3, 4] = torch.nan, torch.inf
    cosine[4, (target[4] + 1) % 9] = -torch.inf  # leaves its class out
    loss, gradient = loss_and_gradient(lambda x: class_parallel_agcl(x, target, 9, reduction="none"), cosine)
    assert loss.isnan().tolist() == [False, True, False, True, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False, True, False]
    torch.testing.assert_close(loss, agcl(cosine, target, reduction="none"), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "classes"), [(4, 3), (33, 90)])
def test_vmf(place, width, classes, dtype):
    features = F.normalize(torch.randn(7, width, dtype=torch.float64), dim=1).to(dtype).to(place.device)
    directions = F.normalize(torch.randn(classes, width, device=place.device), dim=1)
    kappa, prior = torch.rand(classes, device=place.device) * 100, torch.randn(classes, device=place.device)
    target = torch.randint(classes, (7,), device=place.device)
    loss, gradient = loss_and_gradient(
        lambda x: class_parallel_vmf_cross_entropy(x, target, directions, kappa, classes, log_prior=prior), features
    )
    with ltfast.backend("reference"):
        expected, expected_gradient = loss_and_gradient(
            lambda x: vmf_cross_entropy(x, target, directions, kappa, log_prior=prior), features.double()
        )
    tolerance, gradient_tolerance = tolerances(dtype)
    assert relative_error(loss, expected) < 5 * tolerance
    assert row_error(gradient, expected_gradient) < gradient_tolerance
    assert gradient.dtype == dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_ignored_labels(place, reduction, ignore_index):
    rows = place.rows(9)
    cosine, target, class_noise = problem(rows, 20, torch.float64, place.device)
    target[::4] = ignore_index
    options = {"reduction": reduction, "ignore_index": ignore_index}
    directions, features = (F.normalize(torch.randn(n, 18, device=place.device), dim=1) for n in (20, rows))
    kappa = torch.rand(20, device=place.device) * 50

    def noise():
        return torch.Generator(place.device).manual_seed(2)

    for x, split, whole in (
        (
            cosine,
            lambda x: class_parallel_agcl(x, target, 20, class_noise, generator=noise(), **options),
            lambda x: agcl(x, target, class_noise, generator=noise(), **options),
        ),
        (
            features,
            lambda x: class_parallel_vmf_cross_entropy(x, target, directions, kappa, 20, **options),
            lambda x: vmf_cross_entropy(x, target, directions, kappa, **options),
        ),
    ):
        (loss, gradient), (expected, of_expected) = loss_and_gradient(split, x), loss_and_gradient(whole, x)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, of_expected, rtol=1e-4, atol=1e-5)
        assert gradient[target == ignore_index].abs().max() == 0
    target[1] = -7
    if place.device == "cpu":
        with pytest.raises(ValueError, match=r"target\[1\] is -7"):
            class_parallel_agcl(cosine, target, 20, **options)


def test_opcheck():
    cosine, target, noise = problem(5, 12)
    arguments = (cosine.clone().requires_grad_(), target, noise, torch.tensor([3]), 7, 20.0, 0.1, 4.0)
    opcheck(agcl_share_op, arguments, rtol=1e-2, atol=1e-3)
    statistics, incoming = agcl_share_op(*arguments).detach(), torch.rand(5, 5, dtype=torch.float64)
    torch.library.opcheck(
        agcl_share_gradient_op, (cosine, *arguments[1:4], statistics, incoming, "native", *arguments[4:])
    )
    arguments = (torch.randn(5, 8, requires_grad=True), None, F.normalize(torch.randn(12, 8)), noise * 9, None)
    torch.library.opcheck(torch.ops.ltfast.vmf_cross_entropy.default, (*arguments, 0.1, -100, "none", True))


def test_opcheck_of_a_share_without_its_cosines():
    features, weight = (F.normalize(torch.randn(n, 8), dim=1).requires_grad_() for n in (5, 12))
    _, target, noise = problem(5, 12)
    arguments = (features, weight, target, noise, torch.tensor([3]), 7, 20.0, 0.1, 4.0)
    opcheck(agcl_share.linear_agcl_share_op, arguments, rtol=1e-2, atol=1e-3)
    tensors = [None if x is None else x.detach() for x in arguments[:5]]
    statistics, incoming = agcl_share.linear_agcl_share_op(*arguments).detach(), torch.rand(5, 5, dtype=torch.float64)
    torch.library.opcheck(
        agcl_share.linear_agcl_share_gradient_op, (*tensors, statistics, incoming, "native", *arguments[5:])
    )


def test_gradients_can_be_differentiated():
    cosine, target, class_noise = problem(1, 4, torch.float64)
    features, directions = torch.randn(1, 3, dtype=torch.float64), F.normalize(torch.randn(4, 3, dtype=torch.float64))

    def agcl_loss(x):
        generator = torch.Generator().manual_seed(0)
        return class_parallel_agcl(x, target, 4, class_noise, scale=3.0, gamma_pos=2.0, generator=generator)

    def vmf_loss(x):
        return class_parallel_vmf_cross_entropy(x, target, directions, 9 * class_noise, 4)

    def linear_agcl_loss(x):
        generator = torch.Generator().manual_seed(0)
        options = {"scale": 3.0, "gamma_pos": 2.0, "generator": generator}
        return class_parallel_linear_agcl(x, 2 * directions, target, 4, class_noise, **options)

    with ltfast.backend("reference"):  # the kernels' noise has its own last bits
        torch.autograd.gradgradcheck(agcl_loss, cosine.requires_grad_())
        torch.autograd.gradgradcheck(linear_agcl_loss, features.clone().requires_grad_())
    with ltfast.backend("native"):
        torch.autograd.gradgradcheck(vmf_loss, features.requires_grad_())


BAD = [
    ({"cosine": torch.rand(2, 3)}, ValueError, "cosine is for 3 classes: expected 4, this process's, 0 to 3 of 4"),
    ({"num_classes": 0}, ValueError, "num_classes is 0: expected at least 1, a class a process"),
    ({"target": torch.tensor([0, 4])}, ValueError, r"target\[1\] is 4: expected a label in \[0, 4\)"),
    ({"target": torch.tensor([0])}, ValueError, r"target has shape \(1,\): expected \(2,\), one label per row"),
    ({"target": torch.rand(2)}, TypeError, "target has dtype"),
    ({"class_noise": torch.rand(3)}, ValueError, r"class_noise has shape \(3,\): expected \(4,\)"),
    ({"scale": 0.0}, ValueError, r"scale is 0\.0: expected a number over 0"),
    ({"reduction": "max"}, ValueError, "reduction is 'max'"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[x[2][:30] for x in BAD])
def test_bad_input(change, kind, message):
    arguments = {"cosine": torch.rand(2, 4), "target": torch.tensor([0, 1]), "num_classes": 4, **change}
    with pytest.raises(kind, match=message):
        class_parallel_agcl(**arguments)


def test_bad_input_of_vmf():
    arguments = {
        "features": torch.rand(2, 3), "target": torch.tensor([0, 1]), "directions": torch.rand(4, 3),
        "kappa": torch.rand(4), "num_classes": 4,
    }  # fmt: skip
    for change, message in (
        ({"num_classes": 5}, "directions is for 4 classes: expected 5, this process's, 0 to 4 of 5"),
        ({"target": torch.tensor([4, 1])}, r"target\[0\] is 4: expected a label in \[0, 4\)"),
        ({"log_prior": torch.rand(5)}, r"log_prior has shape \(5,\)"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            class_parallel_vmf_cross_entropy(**{**arguments, **change})


def test_bad_input_without_logits():
    arguments = {
        "features": torch.rand(2, 3), "weight": torch.rand(4, 3), "target": torch.tensor([0, 1]), "num_classes": 4,
    }  # fmt: skip
    bce = {"bias": None, "adjustment": torch.rand(4)}
    for function, more, change, message in (
        (class_parallel_linear_agcl, {}, {"num_classes": 5}, "weight is for 4 classes: expected 5, this process's"),
        (class_parallel_linear_agcl, {}, {"class_noise": torch.rand(3)}, r"class_noise has shape \(3,\)"),
        (class_parallel_linear_agcl, {}, {"scale": 0.0}, r"scale is 0\.0: expected a number over 0"),
        (class_parallel_linear_agcl, {}, {"target": torch.tensor([0, 4])}, r"target\[1\] is 4: expected a label"),
        (class_parallel_linear_balanced_bce, bce, {"num_classes": 5}, "weight is for 4 classes: expected 5"),
        (class_parallel_linear_balanced_bce, bce, {"adjustment": torch.rand(3)}, r"adjustment has shape \(3,\)"),
        (class_parallel_linear_balanced_bce, bce, {"target": torch.tensor([4, 1])}, r"target\[0\] is 4: expected a"),
        (class_parallel_linear_balanced_bce, bce, {"label_smoothing": 1.0}, r"label_smoothing is 1\.0"),
        (class_parallel_linear_balanced_bce, bce, {"weight": torch.rand(4, 2)}, r"weight has shape \(4, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            function(**{**arguments, **more, **change})
