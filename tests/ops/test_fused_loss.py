"""What every fused loss promises to autograd, the compiler and the allocator."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import ltfast
from ltfast.losses import AGCLLoss, BalancedBCELoss, CompensationLoss, LogitAdjustedLoss
from ltfast.ops import agcl, vmf_cross_entropy
from ltfast.ops.core.scale_rows import scale_rows_

COUNTS = [500, 200, 100, 50, 20, 10, 5]


class VmfLoss(nn.Module):
    """vmf_cross_entropy of features as wide as there are classes."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(len(COUNTS), len(COUNTS), generator=generator)
        self.register_buffer("directions", nn.functional.normalize(directions))
        self.register_buffer("kappa", torch.linspace(1, 50, len(COUNTS)))
        self.register_buffer("log_prior", torch.tensor(COUNTS).float().log())

    def forward(self, features, target):
        return vmf_cross_entropy(
            features, target, self.directions, self.kappa, log_prior=self.log_prior, reduction=self.reduction
        )


LOSSES = [
    pytest.param(lambda **k: AGCLLoss(COUNTS, gamma_pos=0.5, **k), id="agcl"),
    pytest.param(lambda **k: BalancedBCELoss(COUNTS, label_smoothing=0.1, **k), id="balanced_bce"),
    pytest.param(lambda **k: LogitAdjustedLoss(COUNTS, **k), id="logit_adjusted"),
    pytest.param(VmfLoss, id="vmf"),
]


@pytest.fixture(params=LOSSES)
def make_loss(request):
    return request.param


def batch(place, rows=None, dtype=torch.float32):
    rows = rows or place.rows(9)
    logits = torch.rand(rows, len(COUNTS), device=place.device) * 2 - 1
    return logits.to(dtype).requires_grad_(), torch.randint(len(COUNTS), (rows,), device=place.device)


def seeded(loss, *arguments):
    torch.manual_seed(0)
    return loss(*arguments)


def test_backward_twice_with_retain_graph(place, make_loss):
    logits, target = batch(place)
    loss = make_loss().to(place.device)(logits, target)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss * 3, logits, retain_graph=True)
    (third,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(second, 3 * kept)
    assert torch.equal(first, kept)
    assert torch.equal(third, kept)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)


def test_the_incoming_gradient_scales_every_row(place, make_loss):
    logits, target = batch(place)
    loss_of = make_loss(reduction="none").to(place.device)
    (plain,) = torch.autograd.grad(seeded(loss_of, logits, target).sum(), logits)
    incoming = torch.rand(len(target), device=place.device)
    incoming[3] = 0
    (scaled,) = torch.autograd.grad(seeded(loss_of, logits, target), logits, incoming)
    torch.testing.assert_close(scaled, plain * incoming[:, None])


def test_gradient_accumulates_over_uses(place, make_loss):
    logits, target = batch(place)
    loss_of = make_loss().to(place.device)
    seeded(loss_of, logits, target).backward()
    once = logits.grad.clone()
    (seeded(loss_of, logits, target) * 2).backward()
    torch.testing.assert_close(logits.grad, 3 * once)


def test_second_derivatives_are_the_reference_s(place, make_loss):
    logits, target = batch(place)
    loss_of = make_loss().to(place.device)

    def penalty():
        (gradient,) = torch.autograd.grad(seeded(loss_of, logits, target), logits, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), logits)[0]

    fused = penalty()
    with ltfast.backend("reference"):
        torch.testing.assert_close(fused, penalty(), rtol=1e-4, atol=1e-6)


def test_no_gradient_is_computed_where_nobody_wants_it(place, make_loss):
    logits, target = batch(place)
    loss_of = make_loss().to(place.device)
    with torch.no_grad():
        without = seeded(loss_of, logits, target)
    assert not without.requires_grad
    torch.testing.assert_close(without, seeded(loss_of, logits, target).detach())


def test_activation_checkpointing_redraws_the_same_noise(place, make_loss):
    logits, target = batch(place)
    loss_of = make_loss().to(place.device)
    plain = seeded(loss_of, logits, target)
    (expected,) = torch.autograd.grad(plain, logits)
    again = seeded(lambda x: checkpoint(loss_of, x, target, use_reentrant=False), logits)
    (gradient,) = torch.autograd.grad(again, logits)
    assert torch.equal(again, plain)
    assert torch.equal(gradient, expected)


def test_grad_scaler_keeps_small_half_precision_gradients(place, make_loss):
    logits, target = batch(place, rows=64)
    loss_of = make_loss().to(place.device)
    half = logits.detach().half().requires_grad_()
    full = half.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(seeded(loss_of, full, target), full)
    (scaled,) = torch.autograd.grad(seeded(loss_of, half, target) * 2.0**15, half)
    # vmf multiplies a gradient in half precision by a matrix, so that elements which nearly cancel are less exact
    cancelled = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(scaled.float() / 2.0**15, expected, rtol=2e-3, atol=max(1e-9, cancelled))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(place, make_loss, dtype):
    model = nn.Linear(16, len(COUNTS)).to(place.device)
    target = batch(place)[1]
    features = torch.randn(len(target), 16, device=place.device)
    loss_of = make_loss().to(place.device)
    with torch.autocast(place.device, dtype):
        loss = seeded(lambda: loss_of(model(features), target))
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, seeded(lambda: loss_of(model(features), target)), rtol=2e-2, atol=2e-2)


EVERY_LOSS = [
    pytest.param(lambda: AGCLLoss(COUNTS, noise_mul=0.0), id="agcl"),
    pytest.param(lambda: BalancedBCELoss(COUNTS, label_smoothing=0.1), id="balanced_bce"),
    pytest.param(VmfLoss, id="vmf"),
    pytest.param(lambda: LogitAdjustedLoss(COUNTS), id="logit_adjusted"),
    pytest.param(lambda: CompensationLoss(COUNTS, 3), id="compensation"),
]


@pytest.mark.slow
@pytest.mark.parametrize("make", EVERY_LOSS)
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_torch_compile_fullgraph(backend, make):
    model, loss_of = nn.Linear(16, len(COUNTS)), make()

    def step(features, target):
        return loss_of(model(features), target)

    torch._dynamo.reset()
    # what the compiler makes of plain PyTorch is not ours to test, and takes it minutes
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager" if backend == "reference" else "inductor")
    with ltfast.backend(backend):
        for rows in (9, 5):
            features, target = torch.randn(rows, 16), torch.randint(len(COUNTS), (rows,))
            loss, plain = compiled(features, target), step(features, target)
            torch.testing.assert_close(loss, plain)
            torch.testing.assert_close(
                torch.autograd.grad(loss, model.weight), torch.autograd.grad(plain, model.weight)
            )


@pytest.mark.slow
def test_torch_compile_draws_fresh_noise():
    model = nn.Linear(16, len(COUNTS))
    loss_of = AGCLLoss(COUNTS)
    step = torch.compile(lambda features, target: loss_of(model(features), target), fullgraph=True)
    features, target = torch.randn(9, 16), torch.randint(len(COUNTS), (9,))
    first, second = step(features, target), step(features, target)
    assert first != second
    (gradient,) = torch.autograd.grad(first, model.weight)
    assert gradient.isfinite().all()


def test_torch_export(make_loss):
    loss_of = make_loss()
    logits, target = torch.rand(9, len(COUNTS)), torch.randint(len(COUNTS), (9,))
    with ltfast.backend("native"):
        program = torch.export.export(loss_of, (logits, target))
    torch.testing.assert_close(seeded(program.module(), logits, target), seeded(loss_of, logits, target))


def test_torch_func_is_sent_to_the_reference(make_loss):
    logits, target = torch.rand(9, len(COUNTS)), torch.randint(len(COUNTS), (9,))
    loss_of = make_loss()
    transformed = torch.func.grad(lambda x: loss_of(x, target))
    with pytest.raises(NotImplementedError, match=r"need the reference: use it inside `with ltfast\.backend"):
        transformed(logits)
    with ltfast.backend("reference"):
        gradient = seeded(transformed, logits)
    logits.requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(seeded(loss_of, logits, target), logits)[0])


def test_an_exported_program_takes_other_strides(make_loss):
    loss_of = make_loss()
    logits, target = torch.rand(9, len(COUNTS)), torch.randint(len(COUNTS), (9,))
    program = torch.export.export(loss_of, (logits, target)).module()
    strided = torch.stack([target, target + 1], dim=1)[:, 0]
    transposed = logits.t().contiguous().t()
    torch.testing.assert_close(seeded(program, transposed, strided), seeded(loss_of, logits, target))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_backward_pass_runs_where_the_forward_pass_ran(make_loss, backend):
    logits, target = torch.rand(9, len(COUNTS), requires_grad=True), torch.randint(len(COUNTS), (9,))
    loss_of = make_loss()
    (expected,) = torch.autograd.grad(seeded(loss_of, logits, target) * 2, logits)
    loss = seeded(loss_of, logits, target) * 2
    with ltfast.backend(backend):
        (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, expected)


def test_batched_gradients(place, make_loss):
    logits, target = batch(place)
    loss = make_loss(reduction="none").to(place.device)(logits, target)
    rows = torch.eye(len(target), device=place.device)
    (jacobian,) = torch.autograd.grad(loss, logits, rows, is_grads_batched=True, retain_graph=True)
    (total,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(jacobian.sum(0), total)
    assert jacobian[0, 1:].abs().max() == 0


def test_half_precision_gradients_of_steep_losses_are_finite(place):
    classes = 300
    logits = (torch.rand(6, classes, device=place.device) * 2 - 1).half().requires_grad_()
    target = torch.randint(classes, (6,), device=place.device)
    for options in ({"weight_pos": 50.0}, {"gamma_neg": 0.0}, {"scale": 300.0, "gamma_neg": 0.5}):
        loss = agcl(logits, target, reduction="sum", **options)
        with ltfast.backend("reference"):
            exact = logits.detach().double().requires_grad_()
            (expected,) = torch.autograd.grad(agcl(exact, target, reduction="sum", **options), exact)
        for retain_graph in (True, False):
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=retain_graph)
            torch.testing.assert_close(gradient.double(), expected, rtol=3e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("rows", [1, 7, 21])
@pytest.mark.parametrize("columns", [1, 33, 5000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scale_rows(place, rows, columns, dtype):
    matrix = torch.randn(rows, columns, device=place.device).to(dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    for factor in (
        torch.rand(rows, 1, device=place.device, dtype=acc),
        torch.tensor(2.5, device=place.device, dtype=acc),
    ):
        scaled = matrix.clone()
        scale_rows_(scaled, factor, 0.5, place.backend)
        torch.testing.assert_close(scaled, (matrix.to(acc) * (factor * 0.5)).to(dtype))
        untouched = matrix.clone()
        scale_rows_(untouched, torch.ones_like(factor), 1.0, place.backend)
        assert torch.equal(untouched, matrix)


@pytest.mark.slow
def test_no_second_matrix_is_allocated():
    # A process of its own prints the peak of resident memory over a step, beside the logits, in matrices of their size.
    script = """
        import torch
        from ltfast.losses import AGCLLoss, BalancedBCELoss
        rows, classes = 2048, 16384
        def resident(peak):
            lines = open("/proc/self/status").read().splitlines()
            return next(int(l.split()[1]) for l in lines if l.startswith("VmHWM" if peak else "VmRSS"))
        for loss in (AGCLLoss(torch.arange(1, classes + 1)), BalancedBCELoss(torch.arange(1, classes + 1))):
            def step(logits):
                loss(logits, torch.zeros(len(logits), dtype=torch.int64)).backward()
            step(torch.rand(4, classes, requires_grad=True))
            logits = torch.rand(rows, classes, requires_grad=True)
            open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
            before = resident(peak=False)
            step(logits)
            print((resident(peak=True) - before) * 1024 / (4 * rows * classes))
            del logits
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True, cwd="/"
    )
    agcl_matrices, bce_matrices = map(float, result.stdout.split())
    assert 0.9 < agcl_matrices < 1.1
    assert 0.9 < bce_matrices < 1.1
