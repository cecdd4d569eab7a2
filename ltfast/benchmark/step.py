"""Times whole training steps of the methods' own stages, and of the same stages with the losses as published."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ltfast.benchmark import clock
from ltfast.benchmark.neighbours import neighbours
from ltfast.benchmark.run import BLOCKS, Rows, failure, free, journal, machine
from ltfast.benchmark.steps import dscl, livt, lpt, proco
from ltfast.benchmark.steps.pair import StepPair
from ltfast.benchmark.steps.size import Size
from ltfast.engine.loss_calls import LossCall, caught_loss_calls
from ltfast.engine.report import write_json

STEPS, LINES = "steps.json", "steps.jsonl"
METHODS: dict[str, Callable[[Size, torch.device], StepPair]] = {
    "proco": proco.pair,
    "dscl": dscl.pair,
    "lpt": lpt.pair,
    "livt": livt.pair,
}


def default_sizes(device: torch.device) -> dict[str, Size]:
    """The size of each method's step: one that fits into a GPU's memory, or that two cores do in about a second."""
    if device.type == "cuda":
        images = 256 if torch.cuda.get_device_properties(device).total_memory > 44 * 2**30 else 64
        vit, resnet = Size("vit_base_patch16_224", images), Size("resnet50", images)
        return {"proco": Size("resnet50", 64), "dscl": resnet, "lpt": vit, "livt": vit}
    vit, resnet = Size("vit_small_patch16_224", 4), Size("resnet50", 4, pixels=112)
    return {"proco": resnet, "dscl": resnet, "lpt": vit, "livt": vit}


def bench(
    device: torch.device,
    methods: Iterable[str] = METHODS,
    *,
    seconds: float,
    sizes: Mapping[str, Size] | None = None,
    out: Path | None = None,
    show: Callable[[Rows, Rows], None] = lambda rows, missing: None,
) -> dict[str, Any]:
    """Time steps. A method that fails becomes an entry of `missing`, and the next one is measured.

    Args:
        device, methods, seconds, sizes: see `run_steps`.
        out: a folder for `steps.json`, and for `steps.jsonl`, to which what is measured is written at once.
        show: called with the rows and what is missing of each method when it is done.

    Returns:
        The content of `steps.json`: the `machine`, the `rows` of `run_steps`, and `missing`, as in
        `ltfast.benchmark.run.bench`.
    """
    rows: Rows = []
    missing: Rows = []
    about = machine(device)
    with journal(out and out / LINES) as note:
        note({"machine": about})
        for method in methods:
            measured, absent = _rows_or_failure(device, method, seconds, sizes)
            for entry in (*measured, *absent):
                note(entry)
            show(measured, absent)
            rows += measured
            missing += absent
    results = {"machine": about, "rows": rows, "missing": missing}
    if out is not None:
        write_json(out / STEPS, results)
    return results


def _rows_or_failure(
    device: torch.device, method: str, seconds: float, sizes: Mapping[str, Size] | None
) -> tuple[Rows, Rows]:
    try:
        return run_steps(device, [method], seconds=seconds, sizes=sizes), []
    except Exception as error:
        found = failure(error, method, "ltfast")
    free(device)
    return [], [found]


def run_steps(
    device: torch.device, methods: Iterable[str] = METHODS, *, seconds: float, sizes: Mapping[str, Size] | None = None
) -> Rows:
    """Time steps. Returns a row for each method and implementation, which includes the fields of `Size`.

    Args:
        device: the device to measure; on a GPU, steps run under bfloat16 autocast.
        methods: names from `METHODS`.
        seconds: the time for the timed steps of each implementation, at least four steps.
        sizes: the size of each method's step; None means `default_sizes`.
    """
    sizes = default_sizes(device) if sizes is None else sizes
    return [row for method in methods for row in _rows(method, sizes[method], device, seconds)]


def _rows(method: str, size: Size, device: torch.device, seconds: float) -> Rows:
    pair = METHODS[method](size, device)
    steps, losses = {}, {}
    for name, stage in pair.stages.items():
        with caught_loss_calls(stage) as calls:
            pair.loss(name)
        # not captured: a step of training includes the host's work, and draws on the host
        steps[name] = clock.Stopwatch(partial(pair.step, name), [None], device, capture=False)
        losses[name] = clock.Stopwatch(partial(_repeat, pair), [calls], device, capture=False)
    with neighbours() as others:
        for _ in range(BLOCKS):
            for name in pair.stages:
                steps[name].run(seconds / BLOCKS, 1)
                losses[name].run(seconds / BLOCKS / 10, 1)
    ours = steps["ltfast"].timing().median_ms
    rows = []
    for name in pair.stages:
        timing, loss = steps[name].timing(), losses[name].timing()
        rows.append(
            {
                "method": method,
                "network": f"{size.backbone}, {size.pixels} px",
                **asdict(size),
                "implementation": name,
                "median_ms": timing.median_ms,
                "q1_ms": timing.q1_ms,
                "q3_ms": timing.q3_ms,
                "images_per_s": 1e3 * size.images / timing.median_ms,
                "times_ltfast": timing.median_ms / ours,
                "loss_ms": loss.median_ms,
                "loss_share": loss.median_ms / timing.median_ms,
                "peak_mib": clock.peak_memory(partial(pair.step, name), device),
                "others": others.share,
            }
        )
    return rows


def _repeat(pair: StepPair, calls: Sequence[LossCall]) -> None:
    """Run the forward and backward passes of the loss modules alone."""
    for call in calls:
        call.repeat(pair.autocast)
