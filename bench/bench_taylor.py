"""``taylor_importance_``, ``importance_threshold`` and ``apply_masks_`` on the tensors of a ResNet-50, on a GPU also on
300 million parameters, beside PyTorch's loops and a plain copy, which is the limit."""

import pytest
import torch
import torchvision

import ltfast
from ltfast.ops import apply_masks_, backends, importance_threshold, taylor_importance_
from ltfast.ops.taylor import reference

SHAPES = [tuple(parameter.shape) for parameter in torchvision.models.resnet50().parameters()]
SIZES = {
    "ResNet-50": SHAPES,
    "300 M parameters": [(1024, 1024)] * 240 + [(4096, 1024)] * 12,
}
MODELS = [
    "ResNet-50",
    pytest.param("300 M parameters", marks=pytest.mark.gpu),
]


def lists(model, device, number):
    return [[torch.randn(shape, device=device) for shape in SIZES[model]] for _ in range(number)]


def elements(model):
    return sum(torch.Size(shape).numel() for shape in SIZES[model])


def in_cuda(function):
    """The kernels in CUDA C++ beside the default, which is Triton's."""
    if not backends.native().cuda:
        pytest.skip("ltfast was built without its CUDA kernels")

    def call():
        with ltfast.backend("native"):
            return function()

    return call


CUDA = pytest.param("ltfast CUDA", marks=pytest.mark.gpu)


@pytest.mark.parametrize(
    "implementation", ["ltfast", CUDA, "eager", "foreach", "torch.compile", "copy of a list", "copy of one tensor"]
)
@pytest.mark.parametrize("model", MODELS)
def test_update(step, device, model, implementation):
    accumulators, parameters, gradients = lists(model, device, 3)
    copies = [torch.empty_like(parameter) for parameter in parameters]
    flat = torch.randn(elements(model), device=device)
    flat_copy = torch.empty_like(flat)
    compiled = torch.compile(reference.taylor_importance_)

    def foreach():
        products = torch._foreach_mul(parameters, gradients)
        torch._foreach_addcmul_(accumulators, products, products)

    def update():
        taylor_importance_(accumulators, parameters, gradients)

    calls = {
        "ltfast": lambda: update,
        "ltfast CUDA": lambda: in_cuda(update),
        "eager": lambda: lambda: reference.taylor_importance_(accumulators, parameters, gradients),
        "foreach": lambda: foreach,
        "torch.compile": lambda: lambda: compiled(accumulators, parameters, gradients),
        "copy of a list": lambda: lambda: torch._foreach_copy_(copies, parameters),
        "copy of one tensor": lambda: lambda: flat_copy.copy_(flat),
    }
    moved = (8 if implementation.startswith("copy") else 16) * elements(model)
    name = f"taylor_importance_ {model} float32"
    step(calls[implementation](), group=name, implementation=implementation, moved=moved)


@pytest.mark.parametrize("implementation", ["ltfast", "cat + sort", "cat + kthvalue"])
@pytest.mark.parametrize("model", MODELS)
def test_threshold(step, device, model, implementation):
    (values,) = lists(model, device, 1)
    values = [x.pow(4) for x in values]
    k = round(0.3 * elements(model))
    calls = {
        "ltfast": lambda: importance_threshold(values, 0.3),
        "cat + sort": lambda: torch.cat([x.flatten() for x in values]).sort().values[k - 1],
        "cat + kthvalue": lambda: torch.cat([x.flatten() for x in values]).kthvalue(k).values,
    }
    name = f"importance_threshold {model} float32"
    step(calls[implementation], group=name, implementation=implementation, moved=4 * elements(model))


@pytest.mark.parametrize("implementation", ["ltfast", CUDA, "eager"])
@pytest.mark.parametrize("values", [False, True], ids=["zero", "values"])
@pytest.mark.parametrize("model", MODELS)
def test_apply_masks(step, device, model, values, implementation):
    tensors, replacements = lists(model, device, 2)
    masks = [tensor > 0.5 for tensor in tensors]

    def eager():
        for tensor, mask, value in zip(tensors, masks, replacements, strict=True):
            if values:
                tensor.copy_(torch.where(mask, value, tensor))
            else:
                tensor.masked_fill_(mask, 0)

    def apply():
        apply_masks_(tensors, masks, replacements if values else None)

    calls = {"ltfast": lambda: apply, "ltfast CUDA": lambda: in_cuda(apply), "eager": lambda: eager}
    name = f"apply_masks_ {model} float32, {'values' if values else 'zero'}"
    moved = (13 if values else 9) * elements(model)
    step(calls[implementation](), group=name, implementation=implementation, moved=moved)
