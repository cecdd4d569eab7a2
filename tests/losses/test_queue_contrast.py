import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

import ltfast.models  # noqa: F401  (registers digits_convnet)
from fixtures import fresh_random_numbers  # noqa: F401
from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss, QueueContrast

CLASSES, WIDTH, DIM, IMAGES = 3, 64, 16, 6


def make(**options):
    encoder = timm.create_model("digits_convnet", num_classes=0)
    options = {"feature_dim": DIM, "queue_size": 20, "momentum": 0.75, **options}
    return QueueContrast(encoder, WIDTH, CLASSES, **options)


def batch(patches=0, dtype=torch.float32):
    images = [torch.randn(IMAGES, 1, 8, 8, dtype=dtype) for _ in range(2)]
    labels = torch.randint(CLASSES, (IMAGES,))
    if patches == 0:
        return *images, labels
    corners = torch.rand(IMAGES, patches, 2, dtype=dtype) * 4
    boxes = torch.cat([corners, corners + 1 + 3 * torch.rand_like(corners)], dim=2)
    return *images, labels, torch.randn(IMAGES, patches, 1, 8, 8, dtype=dtype), boxes


def steps(contrast, batches, rate=0.05):
    """The losses and the gradients of the trained parameters, with a step of gradient descent after each batch."""
    found = []
    for arguments in batches:
        loss = contrast(*arguments)
        contrast.zero_grad()
        loss.backward()
        trained = [p for p in contrast.parameters() if p.requires_grad]
        found.append((loss.detach(), *(p.grad for p in trained)))
        with torch.no_grad():
            for parameter in trained:
                parameter -= rate * parameter.grad
        contrast.after_step()
    return found


class WrittenOut(nn.Module):
    """The same from the encoder's layers, PyTorch's head, torchvision's pooling, and the losses one after the other."""

    def __init__(self, contrast):
        super().__init__()
        self.encoder, self.head = copy.deepcopy(contrast.encoder), copy.deepcopy(contrast.projection.layers)
        self.keys = copy.deepcopy(nn.Sequential(self.encoder, self.head)).requires_grad_(False)
        self.queue = MemoryQueue(DIM, 20, num_classes=CLASSES)

    def project(self, features):
        return F.normalize(self.head(features), dim=1)

    def forward(self, images, key_images, labels, patches=None, boxes=None):
        maps = self.encoder.features(images)
        query = self.project(maps.mean((2, 3)))
        key = F.normalize(self.keys(key_images), dim=1)
        loss = DSCLLoss(temperature=0.1, beta=3.0)(query, key, labels, self.queue)
        if patches is not None:
            pooled = roi_align(maps, list(boxes), 2, 1 / 4).mean((2, 3))
            both = self.project(pooled), self.project(self.encoder(patches.flatten(0, 1)))
            pooled, cropped = (features.unflatten(0, patches.shape[:2]) for features in both)
            loss = loss + 0.5 * PBSDLoss(temperature=0.1)(pooled.detach(), cropped, key, self.queue)
        self.queue.enqueue(key, labels)
        return loss

    def after_step(self):
        for old, new in zip(self.keys.parameters(), nn.Sequential(self.encoder, self.head).parameters(), strict=True):
            old.data = 0.75 * old + 0.25 * new.detach()


@pytest.mark.parametrize("patches", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_encoder_momentum_encoder_queue_and_losses(patches, dtype):
    contrast = make(pbsd_weight=0.5, temperature=0.1, beta=3.0).to(dtype)
    batches = [batch(patches, dtype) for _ in range(5)]  # the queue goes round
    expected = steps(WrittenOut(contrast), batches)
    for actual, value in zip(steps(contrast, batches), expected, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(actual, value, rtol=1e-5, atol=1e-6)  # the queue's keys are float32
        else:  # rounding can switch a ReLU, after which single elements of gradients differ
            one, other = (torch.cat([x.flatten() for x in found]) for found in (actual, value))
            assert (one - other).norm() <= 0.05 * other.norm()


def test_the_parts_add_up():
    contrast = make(pbsd_weight=0.5).eval()  # nothing changes between the calls
    arguments = batch(2)
    parts = contrast.parts(*arguments)
    assert parts.keys() == {"contrast", "distillation"}
    assert torch.equal(contrast(*arguments), parts["contrast"] + 0.5 * parts["distillation"])
    assert contrast.parts(*arguments[:3]).keys() == {"contrast"}
    assert len(contrast.losses.queue) == 0


def test_only_encoder_and_head_are_trained():
    contrast = make()
    steps(contrast, [batch(2)])
    names = {name.split(".")[0] for name, p in contrast.named_parameters() if p.requires_grad}
    assert names == {"encoder", "projection"}
    assert all(p.grad is None for p in contrast.key_network.parameters())


def test_the_momentum_encoder_follows_and_gets_buffers():
    contrast = make()
    steps(contrast, [batch()], rate=1.0)
    before = [p.clone() for p in contrast.key_network.parameters()]
    own = [*contrast.encoder.parameters(), *contrast.projection.parameters()]
    contrast(*batch())
    contrast.after_step()
    for old, new, p in zip(before, contrast.key_network.parameters(), own, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * p)
    for key, value in zip(contrast.key_network.encoder.buffers(), contrast.encoder.buffers(), strict=True):
        assert torch.equal(key, value)
    contrast.copy_encoder()
    assert all(map(torch.equal, contrast.key_network.parameters(), own))


@pytest.mark.parametrize("patches", [0, 2])
def test_it_goes_on_from_its_state_dict(patches):
    batches = [batch(patches) for _ in range(4)]
    whole, contrast, resumed = make(), make(), make()
    contrast.load_state_dict(whole.state_dict())
    expected = steps(whole, batches)
    steps(contrast, batches[:2])
    resumed.load_state_dict(contrast.state_dict())
    for actual, value in zip(steps(resumed, batches[2:]), expected[2:], strict=True):
        assert all(map(torch.equal, actual, value))
    for name, value in whole.state_dict().items():  # encoder, head, momentum encoder and queue
        assert torch.equal(resumed.state_dict()[name], value), name
    assert {name.split(".")[0] for name in whole.state_dict()} == {"encoder", "projection", "key_network", "losses"}


@pytest.mark.slow
def test_compiled_without_a_break():
    contrast, compiled = make(), make()
    compiled.load_state_dict(contrast.state_dict())
    torch._dynamo.reset()
    compiled.compile(fullgraph=True, backend="aot_eager")
    batches = [batch(2) for _ in range(3)]
    torch.testing.assert_close(steps(compiled, batches), steps(contrast, batches), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    contrast, other = make(), make()
    other.load_state_dict(contrast.state_dict())
    arguments = batch(2)
    with torch.autocast("cpu", dtype):
        loss = contrast(*arguments)
    loss.backward()
    contrast.after_step()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in contrast.parameters() if p.requires_grad)
    torch.testing.assert_close(loss, other(*arguments), rtol=0.1, atol=0.2)


def test_half_precision_parameters_are_refused():
    contrast = make().bfloat16()
    with pytest.raises(ValueError, match=r"encoder has parameters of dtype torch.bfloat16: expected float32"):
        contrast.after_step()


def test_any_encoder_will_do_without_patches():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
    contrast = QueueContrast(encoder, 9, CLASSES, queue_size=5)
    assert contrast(*batch()).isfinite()
    with pytest.raises(TypeError, match="encoder is a Sequential: expected a model of timm's, to use patches"):
        contrast(*batch(2))


def test_bad_input_is_named():
    images, keys, labels, patches, boxes = batch(2)
    contrast = make()
    with pytest.raises(ValueError, match="boxes is None: expected a tensor, as patches"):
        contrast(images, keys, labels, patches)
    with pytest.raises(ValueError, match="patches is None: expected a tensor, as boxes"):
        contrast(images, keys, labels, boxes=boxes)
    with pytest.raises(ValueError, match=r"patches has shape \(6, 1, 8, 8\): expected \(batch, patches, channels"):
        contrast(images, keys, labels, patches[:, 0], boxes)
    with pytest.raises(ValueError, match=r"labels has shape \(5,\): expected \(6,\)"):
        contrast(images, keys, labels[:5])
    with pytest.raises(ValueError, match=r"key has shape \(5, 16\): expected \(6, 16\)"):
        contrast(images, keys[:5], labels)
    with pytest.raises(ValueError, match=r"encoder returns features of shape \(6, 64\): expected \(batch, 5\)"):
        QueueContrast(contrast.encoder, 5, CLASSES)(images, keys, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0: expected at least 1"),
        ({"num_classes": 0}, "num_classes is 0: expected at least 1"),
        ({"feature_dim": 0}, "feature_dim must be at least 1, got 0"),
        ({"queue_size": 0}, "queue_size is 0: expected at least 1"),
        ({"momentum": 1.0}, r"momentum is 1.0: expected a number in \[0, 1\)"),
        ({"momentum": -0.1}, "momentum is -0.1: expected a finite number of 0 or more"),
        ({"temperature": 0.0}, "temperature is 0.0: expected a number over 0"),
        ({"beta": -1.0}, "beta is -1.0: expected a finite number of 0 or more"),
        ({"pbsd_weight": -1.0}, "pbsd_weight is -1.0: expected a finite number of 0 or more"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        QueueContrast(**{"encoder": nn.Linear(2, 2), "width": 2, "num_classes": 2, **options})


def test_an_encoder_that_is_no_module_is_named():
    with pytest.raises(TypeError, match=r"encoder is a str: expected a torch.nn.Module"):
        QueueContrast("resnet50", 2048, CLASSES)
