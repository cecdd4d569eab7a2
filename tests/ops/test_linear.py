import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import ltfast
from ltfast.ops import agcl, balanced_bce, cross_entropy, linear_agcl, linear_balanced_bce, linear_cross_entropy
from ltfast.ops.linear import LINEAR_AGCL, LINEAR_BALANCED_BCE, blocks
from ops.compare import opcheck, relative_error

REDUCTIONS = ("mean", "sum", "none")


def bce_of_layer(features, weight, bias, target, adjustment, **options):
    options["weight"] = options.pop("class_weight", None)
    return balanced_bce(F.linear(features, weight, bias), target, adjustment, **options)


def cross_entropy_of_layer(features, weight, bias, target, adjustment, **options):
    options["weight"] = options.pop("class_weight", None)
    return cross_entropy(F.linear(features, weight, bias), target, adjustment, **options)


def fused_cross_entropy(features, weight, bias, target, adjustment, **options):
    return linear_cross_entropy(features, weight, bias, target, adjustment=adjustment, **options)


def agcl_of_layer(features, weight, bias, target, class_noise, **options):
    return agcl(F.normalize(features) @ F.normalize(weight).T, target, class_noise, **options)


def fused_agcl(features, weight, bias, target, class_noise, **options):
    return linear_agcl(features, weight, target, class_noise, **options)


# The function, the same with logits, whether the layer has a bias, and whether targets may be probabilities.
KINDS = {
    "balanced_bce": (linear_balanced_bce, bce_of_layer, True, True),
    "cross_entropy": (fused_cross_entropy, cross_entropy_of_layer, True, True),
    "agcl": (fused_agcl, agcl_of_layer, False, False),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A block has three rows, or as many as have 64 logits."""
    monkeypatch.setattr(blocks, "FEWEST", 3)
    monkeypatch.setattr(blocks, "BUDGET", {"cpu": 64, "cuda": 64})


def problem(kind, rows=17, classes=11, width=6, dtype=torch.float64, device="cpu", soft=False):
    """Features, weight, bias, target and the class vector of the loss."""
    randn = torch.Generator().manual_seed(rows + classes)
    features, weight, bias, vector = (
        torch.randn(*shape, generator=randn, dtype=torch.float64).to(dtype).to(device)
        for shape in ((rows, width), (classes, width), (classes,), (classes,))
    )
    target = torch.rand(rows, classes).to(device) if soft else torch.randint(classes, (rows,)).to(device)
    return [features, weight, bias if KINDS[kind][2] else None, target, vector.abs() / 4]


def results(function, arguments, incoming=None, seed=0, **options):
    """The loss and the gradients of features, weight and bias."""
    layer = [None if x is None else x.detach().clone().requires_grad_() for x in arguments[:3]]
    torch.manual_seed(seed)
    loss = function(*layer, *arguments[3:], **options)
    incoming = torch.ones_like(loss) if incoming is None else incoming.to(loss)
    gradients = torch.autograd.grad(loss, [x for x in layer if x is not None], incoming)
    return loss.detach(), gradients


def check(place, kind, arguments, incoming=None, tolerance=(1e-10, 1e-10), **options):
    function, with_logits = KINDS[kind][:2]
    loss, gradients = results(function, arguments, incoming, **options)
    doubled = [x.double() if x is not None and x.is_floating_point() else x for x in arguments]
    with ltfast.backend("reference"):
        expected, expected_gradients = results(with_logits, doubled, incoming, **options)
    assert relative_error(loss, expected) < tolerance[0]
    for gradient, one, argument in zip(
        gradients, expected_gradients, (x for x in arguments[:3] if x is not None), strict=True
    ):
        assert gradient.dtype == argument.dtype
        assert gradient.shape == argument.shape
        assert relative_error(gradient, one) < tolerance[1] * max(1, one.abs().max().item())


@kinds
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_labels(place, kind, reduction, dtype):
    tolerance = (1e-10, 1e-10) if dtype == torch.float64 else (2e-6, 1e-5)
    for rows, classes in ((1, 5), (17, 11), (16, 3), (7, 131)):
        arguments = problem(kind, place.rows(rows), classes, dtype=dtype, device=place.device)
        incoming = torch.rand(place.rows(rows)) if reduction == "none" else torch.tensor(1.7)
        if kind == "agcl":  # the noise is float32
            tolerance = (2e-6, 1e-5)
        check(place, kind, arguments, incoming.to(place.device), tolerance, reduction=reduction)


@kinds
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows(place, kind, reduction):
    arguments = problem(kind, 8, device=place.device)
    arguments[3][1::3] = -1
    arguments[4] = arguments[4] * (kind != "agcl")  # no noise
    check(place, kind, arguments, reduction=reduction, ignore_index=-1)
    arguments[3][:] = -1
    loss, gradients = results(KINDS[kind][0], arguments, reduction=reduction, ignore_index=-1)
    assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()
    assert reduction == "mean" or all((x == 0).all() for x in gradients)


@pytest.mark.parametrize("kind", [kind for kind, what in KINDS.items() if what[3]])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_soft_targets(place, kind, reduction):
    check(place, kind, problem(kind, 8, device=place.device, soft=True), reduction=reduction)


def test_options_of_balanced_bce(place):
    arguments = problem("balanced_bce", 8, device=place.device)
    vectors = {name: torch.rand(11, device=place.device).double() for name in ("class_weight", "pos_weight")}
    check(place, "balanced_bce", arguments, label_smoothing=0.1, **vectors)
    check(place, "balanced_bce", arguments, label_smoothing=0.3, target_threshold=0.2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options_of_cross_entropy(place, reduction):
    arguments = problem("cross_entropy", 8, device=place.device)
    arguments[3][2] = -100
    class_weight = torch.rand(11, device=place.device).double()
    check(place, "cross_entropy", arguments, label_smoothing=0.1, class_weight=class_weight, reduction=reduction)
    arguments[3] = torch.rand(8, 11, device=place.device)
    check(place, "cross_entropy", arguments, label_smoothing=0.1, class_weight=class_weight, reduction=reduction)


@kinds
def test_any_block_gives_the_same(kind, monkeypatch):
    """The noise too."""
    arguments = problem(kind, 23)
    expected, expected_gradients = results(KINDS[kind][0], arguments)
    for rows in (1, 4, 7, 100):
        monkeypatch.setattr(blocks, "FEWEST", rows)
        loss, gradients = results(KINDS[kind][0], arguments)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for one, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@kinds
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(kind, reduction):
    arguments = problem(kind, 4, 3, 2)  # two blocks
    layer = [x.requires_grad_() for x in arguments[:3] if x is not None]
    if kind == "agcl":
        arguments[4] = None

    def function(*layer):
        bias = layer[2] if KINDS[kind][2] else None
        return KINDS[kind][0](layer[0], layer[1], bias, *arguments[3:], reduction=reduction)

    torch.autograd.gradcheck(function, layer)
    torch.autograd.gradgradcheck(function, layer)


@kinds
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_each_gradient_alone(kind, reduction):
    arguments = problem(kind)
    function = KINDS[kind][0]
    _, everything = results(function, arguments, reduction=reduction)
    for place, gradient in enumerate(everything):
        layer = [None if x is None else x.clone() for x in arguments[:3]]
        layer[place].requires_grad_()
        torch.manual_seed(0)
        loss = function(*layer, *arguments[3:], reduction=reduction)
        (alone,) = torch.autograd.grad(loss.sum(), [layer[place]])
        assert torch.equal(alone, gradient)
    with torch.no_grad():
        torch.manual_seed(0)
        evaluated = function(*layer, *arguments[3:], reduction=reduction)
    assert not evaluated.requires_grad
    assert torch.equal(evaluated, loss)


@kinds
def test_no_gradient_is_computed_in_evaluation(kind, monkeypatch):
    monkeypatch.setattr("ltfast.ops.linear.linear_loss.Gradients", None)
    with torch.no_grad():
        KINDS[kind][0](*problem(kind))


@kinds
def test_the_backward_pass_can_be_repeated(kind):
    arguments = problem(kind)
    weight = arguments[1].requires_grad_()
    loss = KINDS[kind][0](*arguments)
    once = torch.autograd.grad(loss, weight, torch.tensor(3.0, dtype=loss.dtype), retain_graph=True)[0].clone()
    again = torch.autograd.grad(loss, weight, torch.tensor(3.0, dtype=loss.dtype))[0]
    assert torch.equal(once, again)


@kinds
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(kind, reduction):
    """As a linear layer under autocast, with float32 parameters; the weight's gradient keeps float32."""
    arguments = problem(kind, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = results(KINDS[kind][0], arguments, reduction=reduction)
        expected, expected_gradients = results(KINDS[kind][1], arguments, reduction=reduction)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 2e-2 * other.norm()


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(kind, dtype):
    arguments = problem(kind, 40, dtype=dtype)
    incoming = torch.tensor(2.0**12 if dtype == torch.float16 else 1.0)  # as a GradScaler may have it
    loss, gradients = results(KINDS[kind][0], arguments, incoming)
    expected, expected_gradients = results(
        KINDS[kind][1], [x.double() if x is not None and x.is_floating_point() else x for x in arguments], incoming
    )
    torch.testing.assert_close(loss.double(), expected.double(), rtol=2e-2, atol=2e-2)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert (one.double() - other).norm() < 3e-2 * other.norm()


@kinds
def test_compile_and_checkpoint(kind):
    arguments = problem(kind)
    arguments[4] = None if kind == "agcl" else arguments[4]
    function = KINDS[kind][0]
    expected, expected_gradients = results(function, arguments)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for other in (compiled, lambda *x: checkpoint(function, *x, use_reentrant=False)):
        loss, gradients = results(other, arguments)
        assert torch.equal(loss, expected)
        assert all(map(torch.equal, gradients, expected_gradients))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(reduction):
    features, weight, bias, target, vector = problem("balanced_bce")
    layer = [x.requires_grad_() for x in (features, weight, bias)]
    options = (0.1, None, -100, reduction, torch.float64, True, True, True)
    opcheck(LINEAR_BALANCED_BCE.registered, (*layer, target, vector, None, None, *options))
    options = (20.0, 0.1, 1.0, 1.0, 0.0, 4.0, -100, reduction, 0, torch.float64, True, True, False)
    opcheck(LINEAR_AGCL.registered, (*layer[:2], None, target, None, vector.abs(), None, *options))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 12), classes=st.integers(1, 40), width=st.integers(1, 9), fewest=st.integers(1, 5),
    single=st.booleans(), reduction=st.sampled_from(REDUCTIONS), transposed=st.booleans(),
)  # fmt: skip
def test_it_is_the_loss_of_the_logits(rows, classes, width, fewest, single, reduction, transposed):
    features, weight, bias, target, vector = problem(
        "balanced_bce", rows, classes, width, torch.float32 if single else torch.float64
    )
    if transposed:
        features, weight = features.T.contiguous().T, weight.T.contiguous().T
    blocks.FEWEST = fewest
    tolerance = (2e-6, 1e-5) if single else (1e-10, 1e-10)
    check(None, "balanced_bce", [features, weight, bias, target, vector], tolerance=tolerance, reduction=reduction)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.rand(3)}, r"features has shape \(3,\): expected \(batch, width\)"),
        ({1: torch.rand(11, 5)}, r"weight has shape \(11, 5\): expected \(classes, 6\), the features' width"),
        ({1: torch.rand(11, 6, dtype=torch.float16)}, r"weight has dtype torch.float16: expected torch.float64"),
        ({2: torch.rand(4)}, r"bias has shape \(4,\): expected \(11,\)"),
        ({3: torch.rand(17, 5)}, r"target has shape \(17, 5\): expected \(17, 11\)"),
        ({3: torch.full((17,), 11)}, r"target\[0\] is 11: expected a label in \[0, 11\)"),
        ({3: torch.zeros(3, dtype=torch.int64)}, r"target has shape \(3,\): expected \(17,\)"),
        ({4: torch.rand(3)}, r"adjustment has shape \(3,\)"),
    ],
)
def test_bad_input(change, message):
    arguments = [change.get(place, x) for place, x in enumerate(problem("balanced_bce"))]
    with pytest.raises((ValueError, TypeError), match=message):
        linear_balanced_bce(*arguments)
