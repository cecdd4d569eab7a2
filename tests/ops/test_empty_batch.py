"""A batch without rows: what PyTorch's own functions give, and no kernel runs."""

import pytest
import torch
from torch.nn import functional as F

import ltfast
from ltfast import ops
from ltfast.ops.core.cases import Sizes
from ops.compare import opcheck
from ops.every_op import EXAMPLES, function_and_tensor
from ops.logits import DTYPES

LOSSES = [name for name in EXAMPLES if name.endswith(("agcl", "balanced_bce", "cross_entropy"))]
SUMS = ["class_sums", "vmf_logits"]
NO_LABELS = torch.zeros(0, dtype=torch.int64)


def nothing(name, dtype):
    function, x = function_and_tensor(name, Sizes(dtype=dtype))
    return lambda x: function(x, NO_LABELS), x[:0].requires_grad_()


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*LOSSES, *SUMS])
def test_every_loss(name, dtype, backend):
    function, x = nothing(name, dtype)
    with ltfast.backend(backend):
        loss = function(x)
        loss.backward()
    assert loss.shape == ()
    assert loss.isnan() if name in LOSSES else loss == 0
    assert x.grad.shape == x.shape
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("name", ["agcl", "balanced_bce", "cross_entropy", "linear_agcl", "linear_cross_entropy"])
def test_compiled(name):
    function, x = nothing(name, torch.float32)
    loss = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    loss.backward()
    assert loss.isnan()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_reductions_and_soft_targets(place, soft, dtype, reduction):
    x = torch.zeros(0, 5, dtype=dtype, device=place.device, requires_grad=True)
    target = torch.zeros((0, 5) if soft else 0, dtype=dtype if soft else torch.int64, device=place.device)
    bias = torch.rand(5, device=place.device)
    expected = F.cross_entropy(x, target, reduction=reduction)
    for op in (ops.cross_entropy, ops.balanced_bce):
        loss = op(x, target, bias, reduction=reduction, weight=bias)
        torch.testing.assert_close(loss, expected.to(loss.dtype), equal_nan=True)
        (gradient,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
        assert gradient.shape == (0, 5)


@pytest.mark.parametrize("ignored", [0, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["linear_agcl", "linear_balanced_bce", "linear_cross_entropy"])
def test_a_layer_gets_no_gradient(name, dtype, reduction, ignored):
    """Neither from no rows nor from ignored ones. It is zeros, not what was in the memory, and not 0 / 0."""
    features = torch.randn(ignored, 4, dtype=dtype, requires_grad=True)
    layer = [torch.randn(5, 4, dtype=dtype, requires_grad=True)]
    layer += [] if name == "linear_agcl" else [torch.randn(5, dtype=dtype, requires_grad=True)]
    target, options = torch.full((ignored,), -100), {"reduction": reduction}
    if name == "linear_balanced_bce":
        options["adjustment"] = torch.zeros(5)
    loss = getattr(ops, name)(features, *layer, target=target, **options)
    assert loss.isnan() if reduction == "mean" else loss.sum() == 0
    gradients = torch.autograd.grad(loss, [features, *layer], torch.ones_like(loss))
    for gradient, tensor in zip(gradients, [features, *layer], strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_a_second_backward_pass():
    x = torch.zeros(0, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.cross_entropy(x, NO_LABELS), x, create_graph=True)
    assert torch.autograd.grad(gradient.sum(), x)[0].shape == (0, 5)


def test_opcheck():
    x = torch.zeros(0, 5, requires_grad=True)
    arguments = (x, NO_LABELS, None, None, 0.1, -100, "sum", True)
    opcheck(torch.ops.ltfast.cross_entropy.default, arguments, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", ["agcl", "balanced_bce", "cross_entropy"])
def test_no_classes_are_an_error(name):
    arguments = (torch.zeros(0),) if name == "balanced_bce" else ()
    with pytest.raises(ValueError, match=r"^(cosine|logits) has shape \(2, 0\): expected"):
        getattr(ops, name)(torch.zeros(2, 0), torch.zeros(2).long(), *arguments)
