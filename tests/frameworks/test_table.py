"""Each loss in each trainer: the weights after two epochs are those of the plain loop."""

from copy import deepcopy

import pytest
import torch

from frameworks.cases import CASES, OF_SCORES, random_images, train_plainly
from frameworks.trainers import TRAINERS

pytestmark = pytest.mark.slow

# MMPretrain's heads take losses of scores only.
CELLS = [(trainer, loss) for trainer in TRAINERS for loss in CASES if trainer != "MMPretrain" or loss in OF_SCORES]


@pytest.mark.parametrize(("trainer", "loss"), CELLS)
def test_a_trainer_gives_the_plain_loop_s_weights(trainer, loss, tmp_path):
    model, data = CASES[loss](), random_images()
    plain, before = deepcopy(model), model.state()
    train_plainly(plain, data)
    TRAINERS[trainer](model, data, tmp_path)
    expected = plain.state()
    assert any(not torch.equal(value, before[name]) for name, value in expected.items())
    torch.testing.assert_close(model.state(), expected, rtol=1e-4, atol=1e-5)
