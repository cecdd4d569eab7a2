"""Forward-mode differentiation, batched gradients and torch.func: of every op the right values, or an error that says
what to do; with the reference always the right values."""

from contextlib import contextmanager

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import ltfast
from ltfast import ops
from ltfast.ops.core import collectives
from ops.compare import tolerances
from ops.conftest import PLACES, Place
from ops.every_op import EXAMPLES, IN_PLACE, exact_gradient, function_and_tensor

LABELS = torch.tensor([0, 3, 4])
EVERY_PLACE = [pytest.param(Place("reference", "cpu"), id="reference"), *(p for p in PLACES if p.id != "triton-gpu")]
REFERENCE = r"use it inside `with ltfast\.backend\('reference'\)`"


@pytest.fixture(params=[p for p in PLACES if p.id != "triton-gpu"])
def kernels(request):
    with ltfast.backend(request.param.backend):
        yield request.param


@pytest.fixture(params=EVERY_PLACE)
def everywhere(request):
    with ltfast.backend(request.param.backend):
        yield request.param


@pytest.fixture(params=EXAMPLES)
def op(request):
    """A function, an x, and the name of the op."""
    function, x = function_and_tensor(request.param)
    return function, x, request.param.split(",")[0]


@contextmanager
def right_or_refused(place, message):
    if place.backend == "reference":
        yield
    else:
        with pytest.raises(NotImplementedError, match=f"{message} need the reference: {REFERENCE}"):
            yield


def close(actual, expected, place=None):
    tolerance = 1e-9 if place is None else max(tolerances(torch.float64)[1], 1e-9)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_the_list_has_every_op():
    assert {name.split(",")[0] for name in EXAMPLES} | set(IN_PLACE) == set(ops.__all__)


def test_tangents(everywhere, op):
    """Of a plain tensor, of one that other strides than a kernel's, and of one with an ordinary gradient besides."""
    function, x, name = op
    tangent = torch.randn_like(x)
    expected = (exact_gradient(function, x) * tangent).sum()
    for primal in (x, x.mT.contiguous().mT, x.clone().requires_grad_()):
        with forward_ad.dual_level(), right_or_refused(everywhere, f"forward-mode derivatives of {name}"):
            value = function(forward_ad.make_dual(primal, tangent))
            close(forward_ad.unpack_dual(value).tangent, expected)


def test_a_tangent_of_another_argument(everywhere):
    x, tangent = torch.rand(2, 3, 5, dtype=torch.float64)[0], torch.ones(5, dtype=torch.float64)
    bias = torch.zeros(5, dtype=torch.float64)
    with forward_ad.dual_level(), right_or_refused(everywhere, "forward-mode derivatives of balanced_bce"):
        value = ops.balanced_bce(x, LABELS, forward_ad.make_dual(bias, tangent))
        moved = exact_gradient(lambda z: ops.balanced_bce(z, LABELS, bias), x).sum()  # bias is added to every row
        close(forward_ad.unpack_dual(value).tangent, moved)


def test_jacobian_in_forward_mode(everywhere, op):
    function, x, name = op
    with right_or_refused(everywhere, f"forward-mode derivatives of {name}"):
        found = torch.autograd.functional.jacobian(function, x, vectorize=True, strategy="forward-mode")
        close(found, exact_gradient(function, x))


def test_tangents_through_a_backward_pass(everywhere, op, request):
    """The incoming gradient has a tangent, the op's arguments have none; some have a kernel for the backward pass."""
    function, x, name = op
    x.requires_grad_()
    loss = function(x)
    expected = 2 * exact_gradient(function, x)
    with_a_kernel = request.node.callspec.params["op"] in (
        "queue_softmax, keys",
        "patch_roi_pool",
        "class_parallel_agcl",
        "class_parallel_linear_agcl",
        "class_parallel_linear_balanced_bce",
        "class_parallel_linear_cross_entropy",
    )
    if "linear" in name and name != "class_parallel_linear_agcl":
        name = name.removeprefix("class_parallel_")  # whose backward pass it is
    place = everywhere if with_a_kernel else Place("reference", "cpu")
    with forward_ad.dual_level(), right_or_refused(place, f"forward-mode derivatives of {name}"):
        incoming = forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 2.0))
        (gradient,) = torch.autograd.grad(loss, x, incoming)
        close(forward_ad.unpack_dual(gradient).tangent, expected, everywhere)


@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients(everywhere, op, create_graph):
    function, x, _ = op
    x.requires_grad_()
    factors = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    expected = exact_gradient(function, x) * factors.view(-1, *[1] * x.dim())
    (found,) = torch.autograd.grad(function(x), x, factors, is_grads_batched=True, create_graph=create_graph)
    close(found, expected, everywhere)


def test_batched_gradients_of_a_mean_loss(everywhere):
    x = torch.randn(3, 3, requires_grad=True)
    loss = ltfast.ops.balanced_bce(x, torch.tensor([0, 1, 2]), torch.zeros(3))
    (found,) = torch.autograd.grad(loss, x, torch.ones(3), is_grads_batched=True)
    expected = ((x.sigmoid() - torch.eye(3)) / 3).detach()
    torch.testing.assert_close(found, expected.expand(3, 3, 3))


def test_vmap_over_a_backward_pass(everywhere, op):
    function, x, _ = op
    x.requires_grad_()
    loss = function(x)
    factors = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = vmap(lambda factor: torch.autograd.grad(loss, x, factor, retain_graph=True)[0])(factors)
    close(found, exact_gradient(function, x) * factors.view(-1, *[1] * x.dim()), everywhere)


TRANSFORMS = {
    "grad": lambda function, x: grad(function)(x),
    "vmap": lambda function, x: vmap(function)(x[None]),
    "jvp": lambda function, x: jvp(function, (x,), (x,)),
    "jacrev": lambda function, x: jacrev(function)(x),
    "jacfwd": lambda function, x: jacfwd(function)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_kernels_refuse_torch_func(kernels, op, transform):
    function, x, name = op
    with pytest.raises(NotImplementedError, match=f"torch.func transforms of {name} need the reference: {REFERENCE}"):
        TRANSFORMS[transform](function, x)


@pytest.mark.slow
@ltfast.backend("reference")
def test_torch_func_in_the_reference(op):
    """Against plain loops over the samples, and ordinary gradients of them."""
    function, x, _ = op
    expected, tangent = exact_gradient(function, x), torch.randn_like(x)
    for derivative in (grad, jacrev, jacfwd):
        close(derivative(function)(x), expected)
    value, pushed = jvp(function, (x,), (tangent,))
    close(value, function(x))
    close(pushed, (expected * tangent).sum())
    close(hessian(function)(x), torch.autograd.functional.hessian(function, x))
    samples, labels = torch.stack([x, 2 * x, 0.5 * x]), torch.stack([LABELS, LABELS.flip(0), torch.zeros_like(LABELS)])
    pairs = list(zip(samples, labels, strict=True))
    close(vmap(function)(samples, labels), torch.stack([function(*pair) for pair in pairs]))
    close(vmap(grad(function))(samples, labels), torch.stack([exact_gradient(function, *pair) for pair in pairs]))


@ltfast.backend("reference")
@pytest.mark.parametrize(
    "name", ["agcl", "balanced_bce", "cross_entropy", "class_sums", "vmf_cross_entropy", "class_parallel_agcl"]
)
def test_labels_are_checked_in_vmap(name):
    function, x = function_and_tensor(name)
    labels = torch.stack([LABELS, torch.tensor([0, 5, 1])])
    with pytest.raises(ValueError, match=r"\[1, 1\] is 5: expected a label in \[0, 5\)"):
        vmap(grad(function))(torch.stack([x, x]), labels)


@ltfast.backend("reference")
def test_noise_in_vmap():
    """A cloud for each sample, if vmap is told so."""
    x = torch.rand(4, 3, 5, dtype=torch.float64)
    losses = vmap(lambda z: ops.agcl(z, LABELS, torch.ones(5)), randomness="different")(x[:1].expand(4, 3, 5))
    assert len(set(losses.tolist())) == 4


@ltfast.backend("reference")
def test_orders_of_bessel_functions_in_vmap():
    order, x = torch.tensor([0.5, 3.0], dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64) + 0.1
    found = vmap(lambda nu, row: jacfwd(lambda z: ops.log_iv(nu, z).sum())(row))(order, x)
    rows = [exact_gradient(lambda z, nu=nu: ops.log_iv(nu, z).sum(), row) for nu, row in zip(order, x, strict=True)]
    close(found, torch.stack(rows))


def in_place_arguments():
    accumulators, parameters, gradients = (
        [torch.rand(3, 4, dtype=torch.float64), torch.rand(5, dtype=torch.float64)] for _ in range(3)
    )
    return accumulators, parameters, gradients, [parameter > 0.4 for parameter in parameters]


def test_tangents_of_what_changes_tensors(everywhere):
    accumulators, parameters, gradients, masks = in_place_arguments()
    tangents = [torch.rand_like(parameter) for parameter in parameters]

    def tangents_of(tensors):
        return [forward_ad.unpack_dual(tensor).tangent for tensor in tensors]

    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(*pair) for pair in zip(parameters, tangents, strict=True)]
        with right_or_refused(everywhere, "forward-mode derivatives of taylor_importance_"):
            ops.taylor_importance_(accumulators, dual, gradients)
            for w, g, t, found in zip(parameters, gradients, tangents, tangents_of(accumulators), strict=True):
                close(found, 2 * w * g**2 * t)
        with right_or_refused(everywhere, "forward-mode derivatives of importance_threshold"):
            threshold = ops.importance_threshold(dual, 0.5, masks=masks)
            place = (torch.cat([parameter.flatten() for parameter in parameters]) == threshold).nonzero()
            (found,) = tangents_of([threshold])
            close(found, torch.cat([tangent.flatten() for tangent in tangents])[place].squeeze())
        with right_or_refused(everywhere, "forward-mode derivatives of apply_masks_"):
            ops.apply_masks_(dual, masks)
            for mask, tangent, found in zip(masks, tangents, tangents_of(dual), strict=True):
                close(found, tangent.where(~mask, 0))


def updated(accumulators, parameters, gradients, _):
    ops.taylor_importance_(accumulators, parameters, gradients)
    return accumulators


def threshold(accumulators, _parameters, _gradients, masks):
    return [ops.importance_threshold(accumulators, 0.3, masks=masks)]


def masked(_, parameters, gradients, masks):
    ops.apply_masks_(parameters, masks, gradients)
    return parameters


@pytest.mark.parametrize(("name", "call"), zip(sorted(IN_PLACE), (masked, threshold, updated), strict=True))
def test_vmap_of_what_changes_tensors(everywhere, name, call):
    """Two models at once, against one after the other."""
    models = [in_place_arguments() for _ in range(2)]
    stacked = [[torch.stack(tensors) for tensors in zip(*lists, strict=True)] for lists in zip(*models, strict=True)]
    one_by_one = [call(*model) for model in models]
    with right_or_refused(everywhere, f"torch.func transforms of {name}"):
        for actual, *expected in zip(vmap(call)(*stacked), *one_by_one, strict=True):
            close(actual, torch.stack(expected))


@pytest.mark.slow
def test_compiled_transforms_are_refused_too(op):
    function, x, name = op
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: grad(function)(x), backend="aot_eager")
    with pytest.raises(NotImplementedError, match=f"torch.func transforms of {name} need the reference"):
        compiled(x)


@pytest.mark.parametrize(
    ("backend", "name"),
    [("reference", "class_sums"), ("native", "class_sums"), ("native", "agcl"), ("native", "log_iv")],
)
def test_tangents_in_compiled_code(backend, name):
    function, x = function_and_tensor(name)
    tangent = torch.randn_like(x)
    expected = (exact_gradient(function, x) * tangent).sum()
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager")
    place = Place(backend, "cpu")
    with (
        ltfast.backend(backend),
        forward_ad.dual_level(),
        right_or_refused(place, f"forward-mode derivatives of {name}"),
    ):
        value = compiled(forward_ad.make_dual(x, tangent))
        close(forward_ad.unpack_dual(value).tangent, expected)


@pytest.mark.parametrize("exchange", [collectives.gather, collectives.hand_back])
def test_other_processes_get_no_tangents(monkeypatch, exchange):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    x = torch.rand(4, 3)
    message = "do not reach other processes: use one process"
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        exchange(forward_ad.make_dual(x, x))
    with pytest.raises(NotImplementedError, match=message):
        vmap(exchange)(x[None])
