"""Tests the number and size of the messages that two processes exchange in the steps of a run."""

from collections import Counter
from math import prod

import pytest
from torch.profiler import ProfilerActivity, profile

from distributed.harness import run_processes
from distributed.test_methods import COUNTS, JOINED, RUNS, train_all

STEPS = sum(COUNTS) // JOINED  # steps of an epoch


def traffic(rank, processes, folder, methods):
    """For each method's run, the calls of each collective by its number of elements, and the names and sizes of the
    tensors in the checkpoint."""
    results = {}
    for method in methods:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            trained = train_all(rank, processes, folder, [method], "off")
        calls = Counter(
            f"{event.name.removeprefix('gloo:')} {prod(event.input_shapes[0])}"
            for event in profiler.events()
            if event.name.startswith("gloo:") and event.input_shapes
        )
        results[method] = dict(calls), {name: value.numel() for name, value in trained[method][1].items()}
    return results


@pytest.mark.slow
def test_collectives_of_a_step(tmp_path):
    results, _ = run_processes(traffic, 2, 2, str(tmp_path), ["proco", "dscl"])
    calls, sizes = results["proco"]
    steps = STEPS * RUNS["proco"]["epochs"]
    width, rows = RUNS["proco"]["feature_dim"], JOINED // 2
    assert calls[f"all_reduce {len(COUNTS) * (width + 1)}"] == steps  # sums and counts of both views in one call
    statistics = sum(size for name, size in sizes.items() if name.endswith(("running_mean", "running_var")))
    assert calls[f"broadcast {statistics}"] == steps  # those of BatchNorm, without ProCo's statistics

    calls, sizes = results["dscl"]
    width = RUNS["dscl"]["feature_dim"]
    assert calls[f"all_gather {rows * width}"] == 2 * STEPS  # queries and keys, for the loss
    assert calls[f"all_to_all {2 * rows * width}"] == STEPS  # the gradients of the queries, back to their processes
    assert calls[f"all_gather {rows * (width * 4 + 8)}"] == STEPS  # bytes of float32 keys and their labels, for enqueue
    first = [name for name in sizes if name.startswith("0.") and name.endswith(("running_mean", "running_var"))]
    assert calls[f"broadcast {sum(sizes[name] for name in first)}"] == STEPS  # without the queue
