"""A sharded queue equals the queue that each process would hold without sharding."""

import copy
import json
from pathlib import Path

import pytest
import torch

from distributed.harness import run_processes
from ltfast.data import class_groups
from ltfast.engine import RunSettings, loop, report
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.seeding import seed_everything
from ltfast.losses import DSCLLoss, MemoryQueue, PBSDLoss, SupConQueueLoss
from ltfast.methods import METHODS, BuildContext, settings_of
from methods.conftest import tiny_bundle
from vectors import unit

CLASSES = 5
# keys in the queue and in a batch: the ring wraps at different slots, and the third batch is larger than the queue
SIZES = [(20, 8), (23, 12), (5, 20), (9, 4), (1000, 8)]


def make_batches(rows, number=6):
    return [
        (unit(rows, 6), unit(rows, 6), unit(rows, 2, 6), unit(rows, 2, 6), torch.randint(CLASSES, (rows,)))
        for _ in range(number)
    ]


def state_of(queue):
    """The content of a checkpoint, the keys of each process, and the sums of the classes."""
    queue.collect()
    return (
        {name: value.clone() for name, value in queue.state_dict().items()},
        [queue.keys.clone(), queue.labels.clone()],
        torch.cat([x.view(CLASSES, -1) for x in queue.of_class(torch.arange(CLASSES))], dim=1),
    )


def contents(rank, processes, sizes, num_classes, dtype):
    """For each queue, its state after each batch. After the third batch, another queue continues from its state."""
    results = []
    for size, batches in sizes:
        queue = MemoryQueue(6, size, num_classes=num_classes, dtype=dtype, sharded=True)
        states = []
        for step, (_, key, _, _, labels) in enumerate(batches):
            queue.enqueue(key.chunk(processes)[rank], labels.chunk(processes)[rank])
            states.append(state_of(queue))
            if step == 2:
                resumed = MemoryQueue(6, size, num_classes=num_classes, dtype=dtype, sharded=True)
                resumed.load_state_dict(states[-1][0])
                queue = resumed
        results.append(states)
    return results


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(("num_classes", "dtype"), [(CLASSES, torch.float64), (None, torch.bfloat16)], ids=str)
def test_keys_and_sums(processes, num_classes, dtype):
    sizes = [(size, make_batches(rows)) for size, rows in SIZES]
    results = run_processes(contents, processes, processes, sizes, num_classes, dtype)
    for number, (size, batches) in enumerate(sizes):
        queue = MemoryQueue(6, size, num_classes=num_classes, dtype=dtype)
        for step, (_, key, _, _, labels) in enumerate(batches):
            queue.enqueue(key, labels)
            state, _, sums = state_of(queue)
            for rank, result in enumerate(results):
                whole, (keys, own_labels), its_sums = result[number][step]
                assert whole.keys() == state.keys()
                assert all(torch.equal(whole[name], state[name]) for name in state)
                assert torch.equal(keys, queue.keys[rank::processes])
                assert torch.equal(own_labels, queue.labels[rank::processes])
                torch.testing.assert_close(its_sums, sums, rtol=0, atol=1e-12)
                assert torch.equal(its_sums, results[0][number][step][2])


def losses(rank, processes, sizes, sharded):
    """For each batch, the losses and the gradients of this process's rows."""
    results = []
    for size, batches in sizes:
        queue = MemoryQueue(6, size, num_classes=CLASSES, dtype=torch.float64, sharded=sharded)
        for batch in batches:
            query, key, cropped, pooled, labels = (x.chunk(processes)[rank] for x in batch)
            query, cropped = query.clone().requires_grad_(), cropped.clone().requires_grad_()
            attended = queue.attend(query, pooled.flatten(0, 1), cropped.flatten(0, 1), temperature=0.07)
            parts = [
                DSCLLoss()(query, key, labels, queue, attended[0]),
                PBSDLoss()(pooled, cropped, key, queue, (attended[1], attended[2])),
                SupConQueueLoss()(query, key, labels, queue),
            ]
            gradients = torch.autograd.grad(sum(parts), (query, cropped))
            queue.enqueue(key, labels)
            results.append((torch.stack(parts).detach(), *(g / processes for g in gradients)))  # as in DDP
    return results


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_gradients_are_those_of_one_process(processes):
    sizes = [(size, make_batches(rows, 4)) for size, rows in SIZES[:3]]
    results = run_processes(losses, processes, processes, sizes, True)
    for step, (values, *gradients) in enumerate(losses(0, 1, sizes, False)):
        steps = [result[step] for result in results]
        torch.testing.assert_close(sum(one[0] for one in steps) / processes, values, rtol=1e-12, atol=1e-12)
        for number, gradient in enumerate(gradients, 1):
            joined = torch.cat([one[number] for one in steps])
            torch.testing.assert_close(joined, gradient, rtol=1e-10, atol=1e-12)


def test_one_process_has_the_whole_queue():
    sizes = [(size, make_batches(rows, 3)) for size, rows in SIZES[:3]]
    for plain, sharded in zip(losses(0, 1, sizes, False), losses(0, 1, sizes, True), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(plain, sharded, strict=True))
    queue = MemoryQueue(6, 20, sharded=True)
    assert set(queue.state_dict()) == {"keys", "labels", "filled", "position"}


def misuse(rank, processes):
    """The error messages for unsupported uses."""
    messages = []
    queue = MemoryQueue(4, 8, num_classes=2, sharded=True)
    query = torch.randn(2, 4, requires_grad=True)
    torch.nn.ModuleList([queue]).to(torch.float16)  # moves the sharded tensors without changing their dtype
    assert queue.keys.dtype == torch.float32
    assert not {"keys", "labels"} & {name for name, _ in queue.named_buffers()}
    queue.enqueue(query.detach(), torch.tensor([0, 1]))

    def attempt(function):
        try:
            function()
        except (RuntimeError, ValueError) as error:
            messages.append(str(error))

    attempt(lambda: queue.state_dict())
    queue.collect()
    state = copy.deepcopy(queue.state_dict())
    queue.enqueue(query.detach(), torch.tensor([0, 1]))
    attempt(lambda: queue.state_dict())
    attempt(lambda: MemoryQueue(4, processes - 1, sharded=True))
    attempt(lambda: MemoryQueue(4, 9, num_classes=2, sharded=True).load_state_dict(state))
    del state["keys"]
    attempt(lambda: queue.load_state_dict(state))
    ((lse, _),) = queue.attend(query, temperature=0.1)
    attempt(lambda: torch.autograd.grad(lse.sum(), query, create_graph=True))
    return messages


def test_what_cannot_be_done_is_said():
    for messages in run_processes(misuse, 2, 2):
        expected = [
            "the MemoryQueue is sharded over 2 processes: call its collect() in each of them before state_dict()",
            "the MemoryQueue is sharded over 2 processes: call its collect() in each of them before state_dict()",
            "size is 1: expected at least 2, one key per process",
            "size mismatch for keys: (8, 4), expected (9, 4)",
            'Missing key(s) in state_dict: "keys"',
            "create_graph=True: a sharded queue's log-sum-exp cannot be differentiated twice",
        ]
        assert len(messages) == len(expected)
        for message, part in zip(messages, expected, strict=True):
            assert part in message


class Stopped(Exception):
    pass


def train_dscl(rank, processes, folder, sharded, stop):
    """The checkpoint of a run of `--method dscl` that is stopped after some steps and resumed."""
    report.plot_per_class = lambda *_: None  # this takes as long as the training
    values = {
        "epochs": 3, "batch_size": 4, "backbone": "digits_convnet", "feature_dim": 8, "queue_size": 19, "patches": 2,
        "classifier_epochs": 1, "lr": 0.03, "queue_sharded": sharded,
    }  # fmt: skip
    run, out = RunSettings(checkpoint_minutes=0), Path(folder) / f"{sharded}{stop}"
    accelerator = make_accelerator("fp32")
    whole_step = loop._Run._step
    for left in [stop, 0] if stop else [0]:
        counted = [left]

        def step(*arguments, counted=counted):
            if counted[0] == 1:
                raise Stopped
            counted[0] -= 1
            return whole_step(*arguments)

        loop._Run._step = step
        seed_everything(0)
        settings = settings_of("dscl", values)
        plan = METHODS["dscl"].build(settings, tiny_bundle(), BuildContext(run, rank, processes))
        try:
            loop.train(
                plan,
                run=run,
                settings={"method": "dscl", **json.loads(json.dumps(values))},
                facts={"class_names": ["a", "b", "c"]},
                class_counts=[12, 6, 2],
                groups=class_groups([12, 6, 2], (10, 5)),
                out=out,
                accelerator=accelerator,
            )
        except Stopped:
            assert left
        else:
            assert not left
    queue = plan.stages[0].contrast.losses.queue
    assert queue.keys.shape[0] == (10 - rank if sharded else 19)
    return load_checkpoint(out)["model"]


@pytest.mark.slow
def test_a_run_saves_and_resumes(tmp_path):
    """A run with a sharded queue matches a run without one; an interrupted and resumed run is bit-identical."""
    whole, *_ = run_processes(train_dscl, 2, 2, str(tmp_path), False, 0)
    sharded, *_ = run_processes(train_dscl, 2, 2, str(tmp_path), True, 0)
    resumed, *_ = run_processes(train_dscl, 2, 2, str(tmp_path), True, 5)
    assert whole.keys() == sharded.keys() == resumed.keys()
    assert whole["0.contrast.losses.queue.filled"] == 19
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(sharded[name], resumed[name]), name
    queue = MemoryQueue(8, 19, num_classes=3)  # the queue of one process
    part = "0.contrast.losses.queue."
    queue.load_state_dict({name.removeprefix(part): x for name, x in sharded.items() if name.startswith(part)})
    assert len(queue) == 19
