"""A training that is stopped after its first epoch and goes on from the checkpoint ends as one that is not: the
checkpoints contain queues, class statistics and momentum encoders."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch

from frameworks.cases import BATCH, CASES, random_images
from frameworks.trainers import accelerate, hugging_face, lightning

pytestmark = pytest.mark.slow


TRAINERS: dict[str, Callable[..., None]] = {
    "Lightning": lightning,
    "Lightning, bf16-mixed": partial(lightning, precision="bf16-mixed"),
    "Hugging Face": hugging_face,
    "Accelerate": accelerate,
}


@pytest.mark.parametrize("loss", ["LogitAdjustedLoss", "AGCLLoss", "SeesawLoss", "ProCoLoss", "DSCLLoss"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_resumed_training(trainer, loss, tmp_path):
    train, data = TRAINERS[trainer], random_images()
    whole = CASES[loss]()
    first, second = deepcopy(whole), deepcopy(whole)
    train(whole, data, tmp_path / "whole", 2, False)
    train(first, data, tmp_path / "parts", 1, False)
    if second.criterion is not None:  # the noise of the second epoch, not of the first again
        hook = next(iter(second.criterion._forward_pre_hooks.values()))
        hook.call = -(-len(data) // BATCH)
    train(second, data, tmp_path / "parts", 2, True)
    expected = whole.state()
    assert any(not torch.equal(value, expected[name]) for name, value in first.state().items())
    torch.testing.assert_close(second.state(), expected, rtol=1e-5, atol=1e-6)
    if loss == "SeesawLoss":
        assert second.criterion.cum_samples.sum() == 2 * len(data)
    if loss == "DSCLLoss":
        assert second.network.queue.filled == 24
    if loss == "ProCoLoss":
        assert second.network.proco.past_counts.sum() == len(data)
