"""Each loss in each trainer: the weights after two epochs are those of the plain loop."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from frameworks.cases import CASES, Model, random_images, train_plainly
from frameworks.trainers import CELLS, TRAINERS

pytestmark = pytest.mark.slow


def with_mean_over_labels(model: Model) -> Model:
    """With a mean that does not divide by the weights of the labels, as ``compute_loss`` documents it."""
    if model.criterion is None:
        return model
    criterion = model.criterion
    criterion.reduction = "sum"

    class Mean(nn.Module):
        def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return criterion(scores, labels) / len(labels)

    return Model(model.network, Mean())


@pytest.mark.parametrize(("trainer", "loss"), CELLS)
def test_a_trainer_gives_the_plain_loop_s_weights(trainer, loss, tmp_path):
    model, data = CASES[loss](), random_images()
    plain, before = deepcopy(model), model.state()
    train_plainly(with_mean_over_labels(plain) if trainer == "Hugging Face" else plain, data)
    TRAINERS[trainer](model, data, tmp_path)
    expected = plain.state()
    assert any(not torch.equal(value, before[name]) for name, value in expected.items())
    torch.testing.assert_close(model.state(), expected, rtol=1e-4, atol=1e-5)
