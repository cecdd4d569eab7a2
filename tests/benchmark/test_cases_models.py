import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils._pytree import tree_leaves, tree_map

from ltfast.benchmark.cases import models, queue_losses
from ltfast.ops.core.bench import Unavailable
from ltfast.ops.queue_softmax import bench as queue_softmax
from ltfast.ops.roi_pool import bench as roi_pool
from ltfast.ops.taylor import bench as taylor

CPU = torch.device("cpu")
LIMITS = ("matmul", "copy")  # these do another task


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def leaves(tree):
    return [x for x in tree_leaves(tree) if torch.is_tensor(x)]


def results(case, inputs):
    """The result of each implementation on equal inputs: what it returns, or the inputs that it has modified."""

    def fresh(x):
        return x.detach().clone().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x

    found = {}
    for name, make in case.implementations.items():
        if not name.startswith("torch.compile") and name not in LIMITS:
            own = tree_map(fresh, inputs)
            result = make()(own)
            found[name] = leaves(own if result is None else result)
    return found


def check_alike(found, *peers, **tolerance):
    assert set(found) == {"ltfast", *peers}
    for name in peers:
        assert found["ltfast"]
        torch.testing.assert_close(found[name], found["ltfast"], **tolerance)


@pytest.fixture
def few_classes(monkeypatch):
    """With few classes, every anchor has positives in a queue of some dozens of keys."""
    monkeypatch.setattr(queue_losses, "CLASSES", 3)


@pytest.mark.usefixtures("few_classes")
@pytest.mark.parametrize("loss", ["dscl", "supcon"])
def test_contrastive_losses(loss):
    pytest.importorskip("pytorch_metric_learning")
    case = queue_losses.contrastive(CPU, loss, "small", 6, 40, 16, torch.float32)
    library = ["pytorch-metric-learning"] if loss == "supcon" else []
    check_alike(results(case, case.inputs()), "eager", *library, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("few_classes")
def test_a_contrastive_loss_in_bfloat16():
    case = queue_losses.contrastive(CPU, "dscl", "small", 6, 40, 16, torch.bfloat16)
    inputs = case.inputs()
    assert {x.dtype for x in leaves(inputs)} == {torch.bfloat16, torch.int64}
    check_alike(results(case, inputs), "eager", rtol=0.1, atol=0.1)


def test_patch_self_distillation():
    case = queue_losses.pbsd(CPU, "small", 3, 40, 16, torch.float32)
    check_alike(results(case, case.inputs()), "eager", rtol=1e-4, atol=1e-5)


def test_attention_gives_the_mean():
    case = queue_softmax.forward(CPU, "small", 5, 24, 8, torch.float32)
    found = results(case, case.inputs())
    for name in ("attention, flash", "attention, math"):
        torch.testing.assert_close(found.pop(name), found["ltfast"][1:])
    check_alike(found, "eager")


def test_the_gradient_of_the_log_sum_exp_and_that_of_attention():
    case = queue_softmax.gradient(CPU, "small", 5, 24, 8, torch.float32)
    queries, keys = case.inputs()
    found = results(case, (queries, keys))
    mean = (queries @ keys.T / queue_softmax.TEMPERATURE).softmax(1) @ keys
    of_mean = list(torch.autograd.grad(mean.sum(), queries))
    for name in ("attention, flash", "attention, math"):
        torch.testing.assert_close(found.pop(name), of_mean, rtol=1e-4, atol=1e-5)
    check_alike(found, "eager", rtol=1e-4, atol=1e-5)


def test_a_product_of_as_many_flops():
    case = queue_softmax.forward(CPU, "small", 4, 64, 8, torch.float32)
    (m, n), k = case.implementations["matmul"]()(case.inputs()).shape, 64 * 8 // (2 * 4)
    assert 2 * m * n * k == case.work.flops


def test_attention_without_a_kernel():
    mean = queue_softmax.attention(SDPBackend.CUDNN_ATTENTION)
    with pytest.raises(Unavailable, match="No viable backend"):
        mean(torch.randn(2, 8), torch.randn(3, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pooling(layout, dtype):
    case = roi_pool.case(CPU, "small", 2, 6, layout, dtype)
    inputs = case.inputs()
    assert inputs[0].is_contiguous(memory_format=roi_pool.LAYOUTS[layout])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    check_alike(results(case, inputs), "torchvision", **tolerance)


TENSORS = [(3, 4), (5,), (2, 3, 3)]


@pytest.mark.parametrize(
    ("make", "peers"),
    [
        (taylor.importance, ["eager", "foreach"]),
        (taylor.threshold, ["cat, kthvalue"]),
        (taylor.zero, ["eager"]),
        (taylor.values, ["eager"]),
    ],
)
def test_whole_models(make, peers):
    case = make(CPU, "small", "tiny", TENSORS)
    inputs = case.inputs()
    found = results(case, inputs)
    check_alike(found, *peers)
    if make is not taylor.threshold:
        assert any((x != y).any() for x, y in zip(found["ltfast"], leaves(inputs), strict=True))


@pytest.mark.parametrize("make", [taylor.importance, taylor.zero, taylor.values])
def test_values_stay_finite_over_many_rounds(make):
    case = make(CPU, "small", "tiny", TENSORS)
    inputs, step = case.inputs(), case.implementations["ltfast"]()
    for _ in range(1000):
        step(inputs)
    assert all(x.isfinite().all() for x in leaves(inputs))


def test_the_sorted_value_is_the_threshold(monkeypatch):
    monkeypatch.setattr(taylor, "compilers", lambda *_: {})
    peers = taylor.threshold(torch.device("cuda"), "small", "tiny", TENSORS).implementations
    values = [torch.randn(shape) for shape in TENSORS]
    assert peers["cat, sort"]()((values,)) == peers["ltfast"]()((values,))


def test_kernels_in_cuda_run_under_the_native_backend(monkeypatch):
    monkeypatch.setattr(taylor.backends, "why_not", lambda *_, **__: None)
    assert taylor.in_cuda(taylor.backends.choice)(CPU) == "native"
    monkeypatch.setattr(taylor.backends, "why_not", lambda *_, **__: "left out")
    with pytest.raises(Unavailable, match="left out"):
        taylor.in_cuda(print)


def test_test_time_weights():
    case = models.aggregation(CPU, "small", 20, 3, 10)
    found = results(case, case.inputs())
    check_alike(found, "eager", rtol=1e-4, atol=1e-5)
    assert found["ltfast"][0].std(1).max() > 0.1  # not the initial ones


def test_prompts_among_the_tokens_have_the_same_gradients():
    case = models.prompts(CPU, "small", "vit_tiny_patch16_224", 1, torch.float32)
    found = results(case, case.inputs())
    assert all(x.count_nonzero() for x in found["ltfast"])
    check_alike(found, "published", rtol=1e-3, atol=1e-4)


def test_an_encoder_that_is_shown_all_patches():
    case = models.masked_autoencoder(CPU, "small", "vit_tiny_patch16_224", 1)
    pixels, visible = case.inputs()
    assert visible.shape == (1, 49)
    found = results(case, (pixels, torch.randperm(196)[None]))
    assert all(x.count_nonzero() for x in found["ltfast"])
    check_alike(found, "all patches", rtol=1e-3, atol=1e-4)


def test_products_are_those_of_the_formula():
    tokens, width, blocks, images = 1 + 49, 192, 12, 2
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    patches = 2 * 196 * 3 * 16**2 * width  # their embedding has no gradient with respect to the images
    case = models.masked_autoencoder(CPU, "small", "vit_tiny_patch16_224", images)
    assert case.work.flops == pytest.approx(images * (3 * blocks * block + 2 * patches), rel=1e-3)
