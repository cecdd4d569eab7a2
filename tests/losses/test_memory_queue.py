import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltfast.losses import MemoryQueue


def expect(queue, keys, labels):
    """Check that the queue holds these keys, the newest last, and the sums of their classes."""
    assert len(queue) == len(keys)
    order = [(int(queue.position) - len(queue) + i) % queue.size for i in range(len(queue))]
    assert torch.equal(queue.keys[order], keys.to(queue.keys.dtype))
    assert torch.equal(queue.labels[order], labels)
    everyone = torch.arange(8)
    sums, counts = queue.of_class(everyone)
    for label in everyone:
        of_label = keys[labels == label].to(queue.keys.dtype).double()
        torch.testing.assert_close(sums[label], of_label.sum(0), rtol=0, atol=1e-12)
        assert counts[label] == len(of_label)


@given(
    size=st.integers(1, 12),
    batches=st.lists(st.integers(1, 15), min_size=1, max_size=8),
    num_classes=st.sampled_from([None, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(deadline=None, max_examples=50)
def test_a_ring_of_any_size_takes_batches_of_any_size(size, batches, num_classes, dtype):
    queue = MemoryQueue(3, size, num_classes=num_classes, dtype=dtype)
    all_keys, all_labels = torch.empty(0, 3), torch.empty(0, dtype=torch.int64)
    for number in batches:
        keys, labels = torch.randn(number, 3), torch.randint(8, (number,))
        queue.enqueue(keys, labels)
        all_keys, all_labels = torch.cat([all_keys, keys])[-size:], torch.cat([all_labels, labels])[-size:]
        expect(queue, all_keys, all_labels)


def test_memory_follows_the_classes_that_are_there():
    """The sums of 10^12 classes would not fit into memory. Classes that leave the queue leave the sums."""
    queue = MemoryQueue(3, 10)
    all_keys, all_labels = torch.empty(0, 3), torch.empty(0, dtype=torch.int64)
    for _ in range(30):
        keys, labels = torch.randn(4, 3), torch.randint(10**12, (4,))
        labels[1] = labels[0]
        queue.enqueue(keys, labels)
        all_keys, all_labels = torch.cat([all_keys, keys])[-10:], torch.cat([all_labels, labels])[-10:]
        sums, counts = queue.of_class(torch.cat([all_labels, all_labels + 1]))
        same = all_labels == all_labels[:, None]
        torch.testing.assert_close(sums[: len(same)], same.double() @ all_keys.double(), rtol=0, atol=1e-12)
        assert torch.equal(counts[: len(same)], same.sum(1).double())
        assert not sums[len(same) :].any()
        assert not counts[len(same) :].any()
    assert len(queue.sums) == len(queue.classes) <= 2 * (10 + 4)
    other = MemoryQueue(3, 10)
    other.load_state_dict(queue.state_dict())
    for one, two in zip(other.of_class(all_labels), queue.of_class(all_labels), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_state_is_taken_up():
    queue = MemoryQueue(3, 10, num_classes=8)
    for _ in range(3):
        queue.enqueue(torch.randn(4, 3), torch.randint(8, (4,)))
    state = copy.deepcopy(queue.state_dict())
    for num_classes in (8, None):
        other = MemoryQueue(3, 10, num_classes=num_classes)
        if num_classes is None:
            other.enqueue(torch.ones(2, 3), torch.tensor([7, 7]))
        other.load_state_dict(state)
        assert (other.filled, other.position) == (queue.filled, queue.position)
        labels = torch.arange(8)
        for one, two in zip(other.of_class(labels), queue.of_class(labels), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    assert set(state) == {"keys", "labels", "filled", "position"}


def test_its_dtype_stays():
    queue = MemoryQueue(3, 10, dtype=torch.bfloat16).half().double()
    assert queue.keys.dtype == torch.bfloat16
    assert queue.sums.dtype == torch.float64


def test_keys_are_kept_without_their_graph():
    queue = MemoryQueue(3, 10)
    queue.enqueue(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1]))
    assert not queue.keys.requires_grad


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_overflow_does_not_stay(bad):
    queue = MemoryQueue(3, 4, num_classes=2)
    keys = torch.randn(2, 3)
    keys[0, 1] = bad
    queue.enqueue(keys, torch.tensor([0, 1]))
    assert torch.equal(queue.keys[:2], torch.stack([torch.zeros(3), keys[1]]))
    sums, counts = queue.of_class(torch.tensor([0, 1]))
    assert torch.equal(sums.float(), queue.keys[:2])
    assert counts.tolist() == [1, 1]


def test_bad_input():
    for arguments, message in (
        ((0, 4), "feature_dim is 0: expected at least 1"),
        ((4, 0), "size is 0: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MemoryQueue(*arguments)
    with pytest.raises(ValueError, match="num_classes is 0: expected at least 1"):
        MemoryQueue(2, 2, num_classes=0)
    with pytest.raises(TypeError, match=r"dtype is torch\.int64: expected float32"):
        MemoryQueue(2, 2, dtype=torch.int64)
    queue = MemoryQueue(3, 10, num_classes=4)
    keys, labels = torch.randn(2, 3), torch.tensor([0, 1])
    for change, kind, message in (
        ((keys[:, :2], labels), ValueError, r"keys has shape \(2, 2\): expected \(batch, 3\)"),
        ((keys, labels[:1]), ValueError, r"labels has shape \(1,\): expected \(2,\), one label per key"),
        ((keys, labels.float()), TypeError, r"labels is of type torch\.float32: expected a tensor of integer labels"),
        ((keys, labels + 3), ValueError, r"labels\[1\] is 4: expected a label in \[0, 4\)"),
        ((keys, labels - 1), ValueError, r"labels\[0\] is -1: expected a label in \[0, 4\)"),
    ):
        with pytest.raises(kind, match=message):
            queue.enqueue(*change)
    assert len(queue) == 0
    with pytest.raises(ValueError, match="labels has -1: expected labels of 0 or more"):
        MemoryQueue(3, 10).enqueue(keys, labels - 1)
