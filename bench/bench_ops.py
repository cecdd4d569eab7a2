"""Runs the cases of `ltfast bench` with pytest-benchmark, for its histograms and comparisons.

pytest bench --benchmark-only -k "agcl and imagenet-lt"
"""

from collections.abc import Iterator
from itertools import cycle

import pytest
import torch

from ltfast.benchmark import clock
from ltfast.benchmark.cases import benches
from ltfast.ops.core.bench import Case, Unavailable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def every_case() -> Iterator[Case]:
    for bench in benches().values():
        yield from bench.cases(DEVICE)


PARAMETERS = [
    pytest.param(case, name, id=f"{case.shape}-{case.name}-{name}".replace(" ", "_"))
    for case in every_case()
    for name in case.implementations
]


@pytest.mark.parametrize(("case", "name"), PARAMETERS)
def test_step(benchmark, case, name):
    torch.compiler.reset()
    try:
        step = case.implementations[name]()
    except (ModuleNotFoundError, Unavailable) as error:
        pytest.skip(str(error))
    sets = cycle(clock.cold_sets(case.inputs, DEVICE))

    def timed():
        step(next(sets))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    timed()
    benchmark.group = case.name
    benchmark.extra_info.update(implementation=name, bytes=case.work.bytes, flops=case.work.flops)
    benchmark(timed)
