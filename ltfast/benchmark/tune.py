"""Finds the best launch settings of each kernel on a GPU, for `ltfast tune`.

A case of the bench is a step; the rules that it asks for launches are asked again with each candidate, one rule at a
time, and the step is timed. So the settings are the best ones for the steps that the bench measures.
"""

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from triton.errors import TritonError

from ltfast.benchmark import run
from ltfast.benchmark.clock import Stopwatch, cold_sets
from ltfast.engine.report import write_json
from ltfast.ops.catalog import OPS
from ltfast.ops.core import tuned
from ltfast.ops.core.bench import Case
from ltfast.ops.core.launch import Launch, chip_of
from ltfast.ops.core.tuned import Tunable

SHAPES = ("small", "imagenet-lt", "inat18", "large")  # a launch for these serves longer rows and queues as well
TURNS = 3  # of each candidate, so that a disturbance does not affect only one
GAIN = 0.97  # of the rule's time: a smaller gain may be chance

Key = tuple[str, str]
Clock = Callable[[Callable[[Any], object], Sequence[Any], torch.device], Any]


@dataclass(frozen=True)
class Question:
    """A rule that a case asks, with the answers to try: the rule's own is the first."""

    case: Case
    key: Key
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class Answer:
    """The fastest launch of a rule, and the times of a step in ms: with it, and with the rule's."""

    key: Key
    case: str
    launch: Launch
    rule: Launch
    best_ms: float
    rule_ms: float
    tried: int

    @property
    def changes(self) -> dict[str, Any]:
        return tuned.changes(self.launch, self.rule)


def op_names() -> list[str]:
    """The names for `--ops`: the ops with kernels of their own."""
    return [name for op in OPS for name in op.bench]


def tune(
    device: torch.device,
    *,
    ops: Collection[str] | None = None,
    seconds: float = 0.03,
    workers: int | None = None,
    clock: Clock = Stopwatch,
    show: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Find the fastest launches.

    Args:
        device: the GPU.
        ops: names from `op_names()`; None means all.
        seconds: the time for the timed calls of each candidate, at least three samples.
        workers: processes that compile; None means one for each core, 0 means that nothing is compiled beforehand.
        clock: makes a stopwatch of a step, sets of inputs and a device.
        show: called with each answer.
    """
    asked = list(questions(run.select(device, ops=ops or op_names(), shapes=SHAPES, peers=[])))
    _compile(asked, device, os.cpu_count() if workers is None else workers)
    answers = []
    for question in asked:
        answers.append(_fastest(question, device, seconds, clock))
        show(answers[-1])
    return answers


def write(path: Path, device: torch.device, answers: Iterable[Answer]) -> None:
    """Save what differs from the rules, and use it from now on if the file is one that launches look in.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [
        {
            "rule": answer.key[0],
            "arguments": answer.key[1],
            "changes": answer.changes,
            "case": answer.case,
            "ms": answer.best_ms,
            "rule_ms": answer.rule_ms,
        }
        for answer in answers
        if answer.changes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"chip": chip_of(device).name, "versions": tuned.versions(), "launches": rows})
    tuned.forget()


def questions(cases: Iterable[Case]) -> Iterator[Question]:
    """The rules that the cases ask, each kind of arguments once."""
    seen: set[Key] = set()
    for case in cases:
        step = case.implementations["ltfast"]()
        with tuned.trial() as trial:
            step(case.inputs())
        for key, (rule, launch) in trial.asked.items():
            if key not in seen:
                seen.add(key)
                yield Question(case, key, _candidates(rule, launch))


def _candidates(rule: Tunable[Any], launch: Launch) -> tuple[Launch, ...]:
    return tuple(dict.fromkeys((launch, *rule.candidates(launch))))


def _fastest(question: Question, device: torch.device, seconds: float, clock: Clock) -> Answer:
    step = question.case.implementations["ltfast"]()
    sets = cold_sets(question.case.inputs, device)
    watches = {}
    for launch in question.launches:
        with tuned.trial({question.key: launch}):
            try:
                watches[launch] = clock(step, sets, device)
            except Exception as error:
                if launch is question.launches[0] or not _is_too_large(error):
                    raise
    for _ in range(TURNS):
        for launch, watch in watches.items():
            with tuned.trial({question.key: launch}):
                watch.run(seconds / TURNS, 1)
    times = {launch: watch.timing().median_ms for launch, watch in watches.items()}
    rule = question.launches[0]
    best = min(times, key=lambda launch: times[launch])
    if times[best] > GAIN * times[rule]:
        best = rule
    return Answer(question.key, question.case.name, best, rule, times[best], times[rule], len(times))


def _compile(asked: Sequence[Question], device: torch.device, workers: int | None) -> None:
    """Compile the candidates in parallel: each process runs some of them once, which fills Triton's cache on disk."""
    if not workers:
        return
    jobs = [(question.case.name, question.case.op, question.key, launch) for question in asked
            for launch in question.launches]  # fmt: skip
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(_run_once, [str(device)] * len(jobs), jobs))


_prepared: dict[str, tuple[Callable[[Any], object], Any]] = {}


def _run_once(device: str, job: tuple[str, str, Key, Launch]) -> None:
    name, op, key, launch = job
    if name not in _prepared:
        _prepared.clear()  # the inputs of one case at a time
        case = next(x for x in run.select(torch.device(device), ops=[op], shapes=SHAPES, peers=[]) if x.name == name)
        _prepared[name] = case.implementations["ltfast"](), case.inputs()
    step, inputs = _prepared[name]
    with tuned.trial({key: launch}):
        try:
            step(inputs)
        except Exception as error:
            if not _is_too_large(error):  # else it fails again where it is timed, and is left out there
                raise


def _is_too_large(error: Exception) -> bool:
    """Whether a candidate needs more than the chip has, or does not compile. After any other error, no measurement
    counts."""
    return isinstance(error, TritonError) or "PassManager::run failed" in str(error)
