"""`torch.compile(fullgraph=True)` of whole training steps, as `ltfast train --compile` does it."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from whole_steps.stages import STAGES, first_batches, make_stage, seed


@pytest.mark.parametrize("name", STAGES)
def test_compiled_steps_are_the_eager_ones(name):
    """Loss, gradients and all that a step changes, over two epochs; one graph, compiled once."""
    torch._dynamo.reset()
    eager, compiled = make_stage(name), make_stage(name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile(fullgraph=True, backend=counter)
    both = [(stage, stage.optimizer()) for stage in (eager, compiled)]
    for number, batch in enumerate(first_batches(eager, 4)):
        outcomes = []
        for stage, optimizer in both:
            if number % 2 == 0:
                stage.epoch = number // 2
                seed(100 + number)
                stage.start_epoch()
                stage.train()
            seed(number)
            loss, logged = stage(stage.prepare(batch))
            loss.backward()
            stage.after_backward()
            gradients = {key: p.grad for key, p in stage.named_parameters() if p.grad is not None}
            assert len(gradients) == sum(1 for _ in stage.trained())
            optimizer.step()
            optimizer.zero_grad()
            stage.after_step()
            outcomes.append((loss, logged, gradients))
        torch.testing.assert_close(*outcomes)
    torch.testing.assert_close(eager.state_dict(), compiled.state_dict())
    assert counter.frame_count == 1
