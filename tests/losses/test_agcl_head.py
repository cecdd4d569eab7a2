import pytest
import torch
from torch.nn import functional as F

from ltfast.losses import AGCLLoss
from ltfast.models import ClassParallelCosineClassifier, CosineClassifier

COUNTS = [50, 20, 5]


def test_the_head_gives_the_cosines_that_the_loss_takes():
    criterion = AGCLLoss(COUNTS)
    head = criterion.head(8)
    assert isinstance(head, CosineClassifier)
    features, labels = torch.randn(6, 8, requires_grad=True), torch.randint(3, (6,))
    cosines = head(features)
    torch.testing.assert_close(cosines, F.cosine_similarity(features[:, None], head.weight, dim=2))
    criterion(cosines, labels).backward()
    assert head.weight.grad.any()
    assert features.grad.any()


def test_classes_that_are_split_have_a_head_that_splits_them():
    assert isinstance(AGCLLoss(COUNTS, class_parallel=True).head(8), ClassParallelCosineClassifier)


def test_a_bad_width_is_named():
    with pytest.raises(ValueError, match="width is 0: expected at least 1"):
        AGCLLoss(COUNTS).head(0)
