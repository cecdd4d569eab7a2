"""Rows whose label is ignored: loss 0, gradient 0, and not in the mean, on every backend and in every dtype."""

import pytest
import torch
from torch.nn import functional as F

import ltfast
from ltfast.ops import agcl, balanced_bce, cross_entropy, vmf_cross_entropy
from ops.compare import GRADIENT_TOLERANCE

CLASSES, WIDTH = 7, 20


def ops(device, rows):
    """The input of each op, and the function to call with it."""
    features, directions = (F.normalize(torch.randn(n, WIDTH), dim=1).to(device) for n in (rows, CLASSES))
    kappa, prior = torch.rand(CLASSES, device=device) * 40, torch.randn(CLASSES, device=device)
    logits = torch.rand(rows, CLASSES, device=device) * 2 - 1
    noise = torch.rand(CLASSES, device=device)

    def noisy(x, target, **options):
        generator = torch.Generator(device).manual_seed(3)
        return agcl(x, target, noise, gamma_pos=0.5, generator=generator, **options)

    return {
        "agcl": (logits, noisy),
        "balanced_bce": (3 * logits, lambda x, *y, **k: balanced_bce(x, *y, prior, label_smoothing=0.1, **k)),
        "cross_entropy": (9 * logits, lambda x, *y, **k: cross_entropy(x, *y, prior, label_smoothing=0.1, **k)),
        "vmf": (features, lambda x, *y, **k: vmf_cross_entropy(x, *y, directions, kappa, log_prior=prior, **k)),
    }


def labels(ignore_index, which, device, rows):
    """Where some labels are ignored, they are those of the first row, of two in the middle, and of the last."""
    target = torch.arange(rows, device=device) % CLASSES
    if which == "some":
        target[torch.tensor([0, rows // 2 - 1, rows // 2, rows - 1])] = ignore_index
    return torch.full_like(target, ignore_index) if which == "all" else target


@pytest.mark.parametrize("name", ["agcl", "balanced_bce", "cross_entropy", "vmf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_rows(place, name, dtype, reduction):
    number = place.rows(11)
    inputs, op = ops(place.device, number)[name]
    inputs = inputs.to(dtype)
    with ltfast.backend("reference"):
        exact = inputs.double().requires_grad_()
        rows = op(exact, labels(0, "none", place.device, number), reduction="none")  # no label is ignored
    for ignore_index, which in ((-100, "some"), (3, "some"), (-100, "none"), (-100, "all")):
        target = labels(ignore_index, which, place.device, number)
        counted = target != ignore_index
        expected = torch.where(counted, rows, 0)
        if reduction != "none":
            expected = expected.sum() / (counted.sum() if reduction == "mean" else 1)
        incoming = torch.linspace(1, 2, number, device=place.device) if reduction == "none" else torch.tensor(1.5)
        incoming = incoming.to(place.device, rows.dtype)
        (of_expected,) = torch.autograd.grad(expected, exact, incoming, retain_graph=True)
        x = inputs.detach().requires_grad_()
        loss = op(x, target.to(torch.int16), ignore_index=ignore_index, reduction=reduction)
        exactly = dtype == torch.float64 and name != "agcl" and not place.interpreted  # noise is float32
        tolerance = 3e-9 if exactly else 1e-5
        torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        of_dtype = max(GRADIENT_TOLERANCE[dtype], tolerance)
        allowed = 4 * of_dtype * of_expected.abs().max().item()
        for retain_graph in (True, False):
            (gradient,) = torch.autograd.grad(loss, x, incoming.to(loss), retain_graph=retain_graph)
            torch.testing.assert_close(gradient.double(), of_expected, rtol=0, atol=allowed)
            assert gradient[~counted].abs().sum() == 0
        assert loss.isnan().any() == (which == "all" and reduction == "mean")


@pytest.mark.parametrize("name", ["agcl", "balanced_bce", "cross_entropy", "vmf"])
def test_what_is_in_an_ignored_row_does_not_matter(place, name):
    rows = place.rows(11)
    inputs, op = ops(place.device, rows)[name]
    target = labels(-100, "some", place.device, rows)
    broken = inputs.clone()
    broken[target == -100] = torch.nan
    (loss, gradient), (other, of_other) = (
        (loss, torch.autograd.grad(loss, x)[0])
        for x in (inputs.requires_grad_(), broken.requires_grad_())
        for loss in [op(x, target)]
    )
    assert loss == other
    assert torch.equal(gradient, of_other)


@pytest.mark.parametrize("name", ["agcl", "balanced_bce", "cross_entropy", "vmf"])
def test_second_derivatives_leave_ignored_rows_out(place, name):
    rows = place.rows(11)
    inputs, op = ops(place.device, rows)[name]
    target = labels(-100, "some", place.device, rows)
    kept = target != -100

    def penalty(x, y):
        (gradient,) = torch.autograd.grad(op(x, y), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    if name == "agcl":
        op = agcl  # the noise of a row follows from its place
    whole = penalty(inputs.requires_grad_(), target)
    torch.testing.assert_close(whole[kept], penalty(inputs[kept].detach().requires_grad_(), target[kept]))
    assert whole[~kept].abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
@pytest.mark.parametrize("name", ["agcl", "balanced_bce", "cross_entropy", "vmf"])
def test_other_labels_out_of_range_are_refused(backend, name):
    inputs, op = ops("cpu", 6)[name]
    for ignore_index, wrong in ((-100, -1), (-100, CLASSES), (2, -100), (CLASSES, CLASSES + 1)):
        target = labels(ignore_index, "some", "cpu", 6)
        target[4] = wrong
        with ltfast.backend(backend):
            if backend == "triton":  # on a GPU, raising would wait
                loss = op(inputs, target, ignore_index=ignore_index, reduction="none")
                assert loss.isnan().nonzero().tolist() == [[4]]
            else:
                with pytest.raises(ValueError, match=rf"target\[4\] is {wrong}: expected a label in \[0, 7\)"):
                    op(inputs, target, ignore_index=ignore_index)


@pytest.mark.parametrize("name", ["agcl", "balanced_bce", "cross_entropy", "vmf"])
def test_long_rows_are_ignored_too(place, name):
    """A row has several blocks, and its vectors end within one."""
    classes = 8200 if place.backend == "triton" else 4100
    target = torch.tensor([5, -100, classes - 1, -100], device=place.device)
    if name == "vmf":
        x = F.normalize(torch.randn(4, 8, device=place.device), dim=1)
        statistics = F.normalize(torch.randn(classes, 8, device=place.device), dim=1), torch.rand(classes).to(x) * 9
        op = lambda x, y: vmf_cross_entropy(x, y, *statistics)  # noqa: E731
    else:
        x = torch.rand(4, classes, device=place.device)
        bce = lambda x, y: balanced_bce(x, y, torch.zeros(classes).to(x))  # noqa: E731
        op = {"agcl": agcl, "balanced_bce": bce, "cross_entropy": cross_entropy}[name]
    x.requires_grad_()
    loss, of_kept = op(x, target), op(x[[0, 2]], target[[0, 2]])
    torch.testing.assert_close(loss, of_kept)
    gradients = [torch.autograd.grad(value, x)[0] for value in (loss, of_kept)]
    torch.testing.assert_close(*gradients)
    assert gradients[0][[1, 3]].abs().max() == 0


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    for inputs, op in ops("cuda", 11).values():
        target = labels(-100, "some", "cuda", 11)
        op(inputs.requires_grad_(), target).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            op(inputs, target).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["agcl", "balanced_bce", "cross_entropy", "vmf"])
def test_compiled(name):
    inputs, op = ops("cpu", 11)[name]
    if name == "agcl":
        op = agcl
    target = labels(-100, "some", "cpu", 11)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    results = []
    for function in (op, compiled):
        x = inputs.half().requires_grad_()  # the backward pass takes the mean of float16
        loss = function(x, target)
        results.append((loss, *torch.autograd.grad(loss, x)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
