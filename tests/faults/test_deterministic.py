"""Results are bit-identical from run to run and from call to call."""

import os

import pytest
import torch
from torch.nn import functional as F

import ltfast
from faults.conftest import METHODS, same_bits, tiny, tiny_npz
from ltfast import ops
from ltfast.cli import main
from ltfast.models import PromptedClassifier

PLACES = [
    pytest.param("native", "cpu", id="native"),
    pytest.param(
        "triton",
        "cpu",
        id="triton-interpreter",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the same kernels"),
    ),
    pytest.param("triton", "cuda", id="triton-gpu", marks=pytest.mark.gpu),
]


@pytest.fixture
def _two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def check_runs(method, encoder, tmp_path, options):
    source = tiny_npz(tmp_path / "d.npz", [12, 8])
    words = tiny(method, source, batch_size=4, encoder=encoder)
    for number, more in enumerate(options):
        assert main([*words, *more, "--out", str(tmp_path / str(number))]) == 0
    assert all(same_bits(tmp_path / "0", tmp_path / str(number)) for number in range(1, len(options)))


@pytest.mark.slow
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("method", METHODS)
def test_runs_on_two_threads_end_with_the_same_bits_and_the_flag_changes_none(method, encoder, tmp_path):
    check_runs(method, encoder, tmp_path, [[], ["--deterministic"]])
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
@pytest.mark.usefixtures("_two_threads")
def test_runs_without_class_scores_end_with_the_same_bits(encoder, tmp_path):
    fused = ["--fused-classifier", "on"]
    check_runs("ce", encoder, tmp_path, [fused, [*fused, "--deterministic"]])


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_runs_on_a_gpu_end_with_the_same_bits(method, encoder, tmp_path):
    check_runs(method, encoder, tmp_path, [["--deterministic"], ["--deterministic"]])
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]


def rows(device, *shape, grad=True):
    return torch.randn(shape, device=device).requires_grad_(grad)


def labels(device, number, classes):
    return torch.randint(classes, (number,), device=device)


def sphere(device, *shape):
    return F.normalize(rows(device, *shape, grad=False), dim=-1)


def of_loss(function, logits, *arguments, **options):
    def call():
        torch.manual_seed(0)  # seed of the noise
        loss = function(logits, *arguments, **options)
        return loss, *torch.autograd.grad(loss.sum(), [logits])

    return call


def of_queue(device, n):
    queries, keys = (rows(device, number, 32) for number in (n, 8 * n))

    def call():
        lse, mean = ops.queue_softmax(queries, keys)
        return lse, mean, *torch.autograd.grad(lse.sum() + mean.square().sum(), [queries, keys])

    return call


def of_pool(device, n):
    features = rows(device, max(n // 32, 1), 16, 7, 7)
    corner = 4 * torch.rand(len(features), 3, 2, device=device)
    boxes = torch.cat([corner, corner + 2], dim=-1)

    def call():
        pooled = ops.patch_roi_pool(features, boxes)
        return pooled, *torch.autograd.grad(pooled.square().sum(), [features])

    return call


def of_pruning(device, n):
    values = [rows(device, n, 40, grad=False) for _ in range(3)]

    def call():
        sums = [torch.zeros_like(value) for value in values]
        ops.taylor_importance_(sums, values, values)
        threshold = ops.importance_threshold(sums, 0.3)
        ops.apply_masks_(sums, [total > threshold for total in sums])
        return threshold, *sums

    return call


def of_bessel(device, n):
    x = (100 * torch.rand(n, 40, device=device)).requires_grad_()

    def call():
        value, ratio = ops.log_iv(63.0, x), ops.bessel_ratio(63.0, x)
        return value, ratio, *torch.autograd.grad(value.sum() + ratio.sum(), [x])

    return call


def of_vmf(device, n):
    features = sphere(device, n, 32).requires_grad_()
    directions, kappa, target = sphere(device, 20, 32), 10 * torch.rand(20, device=device), labels(device, n, 20)

    def call():
        logits = ops.vmf_logits(features, directions, kappa)
        loss = ops.vmf_cross_entropy(features, target, directions, kappa)
        return logits, loss, *torch.autograd.grad(logits.square().sum() + loss, [features])

    return call


CASES = {
    "agcl": lambda d, n: of_loss(ops.agcl, rows(d, n, 50), labels(d, n, 50), torch.rand(50, device=d)),
    "balanced_bce": lambda d, n: of_loss(ops.balanced_bce, rows(d, n, 50), labels(d, n, 50), torch.rand(50, device=d)),
    "cross_entropy": lambda d, n: of_loss(
        ops.cross_entropy, rows(d, n, 50), labels(d, n, 50), torch.rand(50, device=d)
    ),
    "vmf": of_vmf,
    "class_sums": lambda d, n: (
        lambda x, y: lambda: ops.class_sums(x, y, 10)
    )(rows(d, n, 32, grad=False), labels(d, n, 10)),
    "queue_softmax": of_queue,
    "patch_roi_pool": of_pool,
    "pruning": of_pruning,
    "bessel": of_bessel,
}  # fmt: skip


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("op", CASES)
def test_ops_give_the_same_bits_at_every_call(op, backend, device):
    interpreted = (backend, device) == ("triton", "cpu")
    with ltfast.backend(backend):
        call = CASES[op](device, 8 if interpreted else 512)
        first = call()
        for flag in (True,) if interpreted else (False, False, False, True, True):
            torch.use_deterministic_algorithms(flag)
            assert all(torch.equal(one, other) for one, other in zip(first, call(), strict=True))


@pytest.mark.usefixtures("_two_threads")
def test_the_gradient_of_shared_prompts_has_the_same_bits_at_every_call():
    pool = PromptedClassifier("vit_tiny_patch16_224", 5, image_size=32).pool
    indices = torch.randint(20, (64, 2))
    weight = torch.randn(64, *pool.prompts.shape[1:])

    def call():
        return torch.autograd.grad(pool.select(indices), [pool.prompts], weight)[0]

    first = call()
    assert all(torch.equal(first, call()) for _ in range(10))
    torch.testing.assert_close(pool.select(indices), pool.prompts[indices].mean(1))
