"""Tests `torch.compile(fullgraph=True)` on whole training steps, as in `ltfast train --compile`."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from distributed.harness import run_processes
from ltfast.losses import DSCLLoss, MemoryQueue
from whole_steps.stages import STAGES, first_batches, make_stage, seed


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_compiled_steps_are_the_eager_ones(name):
    """Loss, gradients and all state that a step changes match over two epochs, with one graph that is compiled once."""
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


def compiled_in_a_process(rank):
    """Loss and gradients of three batches, eager and compiled, and the final queues."""
    outcomes = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(rank)
        loss, queue = DSCLLoss(), MemoryQueue(8, 20, num_classes=3)

        def step(query, key, labels, loss=loss, queue=queue):
            value = loss(query, key, labels, queue)
            queue.enqueue(key, labels)
            return value

        run = step if backend is None else torch.compile(step, fullgraph=True, backend=backend)
        for _ in range(3):
            query, key = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
            query.requires_grad_()
            value = run(query, key, torch.randint(3, (6,)))
            value.backward()
            outcomes.append((value.detach(), query.grad))
        outcomes.append(queue.state_dict())
    torch.testing.assert_close(outcomes[:4], outcomes[4:])
    return outcomes[:3]


@pytest.mark.slow
def test_a_loss_with_a_queue_compiles_in_several_processes():
    first, second = run_processes(compiled_in_a_process, 2, timeout=300)
    assert not torch.equal(first[0][0], second[0][0])
