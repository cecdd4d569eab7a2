import pytest
import torch
from torch.nn import functional as F

from fixtures import fresh_random_numbers  # noqa: F401
from ltfast.losses import ProCoBranch, ProCoLoss
from ltfast.losses.proco_branch import UpdatedProCoLoss

COUNTS = [50, 20, 5]
WIDTH, DIM = 12, 6


def make(**options):
    return ProCoBranch(WIDTH, len(COUNTS), COUNTS, feature_dim=DIM, hidden_dim=10, **options)


def batch(views=1, skip=0, images=7):
    return torch.randn(skip + views * images, WIDTH), torch.randint(len(COUNTS), (images,))


def steps(branch, batches, epochs=2):
    """The losses and the gradients of the features, with a step of gradient descent after each batch."""
    found = []
    for _ in range(epochs):
        branch.start_epoch()
        for features, labels, skip in batches:
            features = features.clone().requires_grad_()
            loss = branch(features, labels, skip=skip)
            branch.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in branch.parameters():
                    parameter -= 0.1 * parameter.grad
            found.append((loss.detach(), features.grad))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("views", "skip"), [(1, 0), (2, 0), (2, 7), (3, 2)])
def test_it_is_head_normalisation_statistics_and_loss(views, skip, dtype):
    branch = make(temperature=0.2).to(dtype)
    linear1, norm, _, linear2 = (layer for layer in make().to(dtype).projection.layers)
    for mine, theirs in zip((linear1, norm, linear2), [branch.projection.layers[i] for i in (0, 1, 3)], strict=True):
        mine.load_state_dict(theirs.state_dict())
    loss = ProCoLoss(len(COUNTS), DIM, temperature=0.2, class_counts=COUNTS)
    for _ in range(2):
        branch.start_epoch()
        loss.start_epoch()
        for _ in range(3):
            features, labels = batch(views, skip)
            features = features.to(dtype).T.contiguous().T.requires_grad_()  # not contiguous
            projected = F.normalize(linear2(F.relu(norm(linear1(features)))), dim=1)[skip:]
            both = torch.cat([labels] * views)
            loss.update(projected.detach(), both)
            expected, actual = loss(projected, both), branch(features, labels, skip=skip)
            torch.testing.assert_close(actual, expected)
            torch.testing.assert_close(*(torch.autograd.grad(x, features)[0] for x in (actual, expected)))
    torch.testing.assert_close(branch.loss.state_dict(), loss.state_dict())
    torch.testing.assert_close(norm.running_mean, branch.projection.layers[1].running_mean)


def test_rows_that_are_skipped_have_no_loss():
    branch = make()
    branch.projection.layers[1].eval()  # otherwise they take part in the mean of the batch
    features, labels = batch(2, 3)
    features.requires_grad_()
    branch(features, labels, skip=3).backward()
    assert not features.grad[:3].any()
    assert features.grad[3:].any()


def test_evaluation_mode_changes_nothing():
    branch = make()
    branch(*batch(2))
    branch.eval()
    before = {name: value.clone() for name, value in branch.state_dict().items()}
    features, labels = batch(2)
    assert torch.equal(branch(features, labels), branch(features, labels))
    assert all(torch.equal(value, before[name]) for name, value in branch.state_dict().items())


def test_images_without_a_label_are_left_out():
    branch, other = make().eval(), make().eval()
    other.load_state_dict(branch.state_dict())
    for loss in (branch.loss, other.loss):
        loss.train()
    features, labels = batch()
    labels[3:5] = -100
    kept = labels >= 0
    torch.testing.assert_close(branch(features, labels), other(features[kept], labels[kept]))
    torch.testing.assert_close(branch.state_dict(), other.state_dict())


def test_a_branch_goes_on_from_its_state_dict():
    batches = [(*batch(2, 7), 7) for _ in range(3)]
    whole, branch, resumed = make(), make(), make()
    branch.load_state_dict(whole.state_dict())
    expected = steps(whole, batches)
    steps(branch, batches, epochs=1)
    assert {"loss.sums", "loss.past_sums", "projection.layers.0.weight"} <= branch.state_dict().keys()
    resumed.load_state_dict(branch.state_dict())
    for actual, value in zip(steps(resumed, batches, epochs=1), expected[3:], strict=True):
        assert all(map(torch.equal, actual, value))


@pytest.mark.slow
def test_compiled_without_a_break():
    branch, compiled = make(), make()
    compiled.load_state_dict(branch.state_dict())
    torch._dynamo.reset()
    compiled.compile(fullgraph=True, backend="aot_eager")
    batches = [(*batch(2, 7), 7) for _ in range(2)]
    torch.testing.assert_close(steps(compiled, batches), steps(branch, batches))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    branch, other = make(), make()
    other.load_state_dict(branch.state_dict())
    features, labels = batch(2, images=30)
    with torch.autocast("cpu", dtype):
        loss = branch(features.to(dtype).requires_grad_(), labels)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in branch.parameters())
    torch.testing.assert_close(loss, other(features, labels), rtol=0.1, atol=0.1)
    assert branch.half().loss.sums.dtype == torch.float32


@pytest.mark.parametrize(
    ("features", "labels", "skip", "message"),
    [
        (torch.ones(4, 5), torch.zeros(4).long(), 0, r"features has shape \(4, 5\): expected \(rows, 12\)"),
        (torch.ones(4, 12, 2), torch.zeros(4).long(), 0, r"features has shape \(4, 12, 2\): expected \(rows, 12\)"),
        (torch.ones(5, 12), torch.zeros(4).long(), 0, "features has 5 rows, and skip is 0: expected 4 more rows"),
        (torch.ones(4, 12), torch.zeros(4).long(), 4, "features has 4 rows, and skip is 4"),
        (torch.ones(4, 12), torch.zeros(4).long(), -4, "features has 4 rows, and skip is -4"),
        (torch.ones(4, 12), torch.zeros(0).long(), 0, r"labels has shape \(0,\): expected \(batch,\)"),
        (torch.ones(4, 12), torch.zeros(2, 2).long(), 0, r"labels has shape \(2, 2\)"),
        (torch.ones(4, 12), [0, 1], 0, "labels is a list"),
        (torch.ones(4, 12), torch.tensor([0, 1, 2, 3]), 0, r"labels\[3\] is 3: expected a label in \[0, 3\)"),
    ],
)
def test_bad_input_is_named(features, labels, skip, message):
    with pytest.raises(ValueError, match=message):
        make()(features, labels, skip=skip)


def test_other_types_are_named():
    with pytest.raises(TypeError, match=r"labels has dtype torch.float32: expected integer labels"):
        make()(torch.ones(4, 12), torch.zeros(4))
    with pytest.raises(TypeError, match=r"skip is 1.5: expected an integer"):
        make()(torch.ones(4, 12), torch.zeros(4).long(), skip=1.5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 3), {}, "width is 0: expected at least 1"),
        ((4, 0), {}, "num_classes is 0: expected at least 1"),
        ((4, 3, [1, 2]), {}, "class_counts has 2 classes: expected 3"),
        ((4, 3), {"feature_dim": 1}, "feature_dim is 1: expected at least 2"),
        ((4, 3), {"hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
        ((4, 3), {"temperature": 0.0}, "temperature is 0.0: expected a number over 0"),
    ],
)
def test_bad_options_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ProCoBranch(*arguments, **options)


def test_its_loss_warns_as_proco_does():
    loss = UpdatedProCoLoss(3, DIM)
    with pytest.warns(UserWarning, match="ProCoLoss: features"):
        loss(3 * torch.ones(4, DIM), torch.zeros(4).long())
