"""Logits in memory of any layout, and long rows of them, for the losses with a bias for each class."""

import pytest
import torch

from ops import test_balanced_bce, test_cross_entropy
from ops.logits import DTYPES, problem

losses = pytest.mark.parametrize(
    "check",
    [
        pytest.param(test_balanced_bce.check, id="balanced_bce"),
        pytest.param(test_cross_entropy.check, id="cross_entropy"),
    ],
)


@losses
def test_non_contiguous(place, check):
    wide, target, _ = problem(11, 60, device=place.device)
    for logits in (wide[:, ::3], wide[:, 7:41], wide.t()[:11], wide[:1].expand(11, -1)):
        classes = logits.shape[1]
        bias = torch.randn(classes, 2, device=place.device)[:, 0]
        check(place, logits, target % classes, bias)
        check(place, logits, torch.rand(classes, 11, device=place.device).t(), bias)
        check(place, logits, torch.rand(1, classes, device=place.device).expand(11, -1), bias)


@losses
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [7, 10, 12, 24])
def test_alignments(place, check, classes, dtype):
    """The widest access that is aligned in every row, for rows that begin anywhere."""
    rows = place.rows(5)
    for skipped, stride in ((0, classes), (0, 32), (1, 32), (4, 28), (8, 40)):
        wide, target, bias = problem(rows, 40, dtype, place.device)
        logits = wide.flatten()[skipped:].as_strided((rows - 1, classes), (stride, 1), skipped)
        check(place, logits, target[1:] % classes, bias[3 : 3 + classes], label_smoothing=0.1)


@losses
def test_a_million_classes(place, check):
    check(place, *problem(2, 100_003 if place.interpreted else 1_000_003, device=place.device))
