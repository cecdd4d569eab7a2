"""Runs a case of an op and holds the result against what every op promises; an ``Entry`` has what is special to one."""

import faulthandler
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import ltfast
from fuzz.draw import seeds
from fuzz.report import WATCHED
from ltfast.ops.core import backends
from ops.compare import tolerances
from ops.conftest import HAS_CUDA, NO_TRITON, Place

CASES = int(os.environ.get("FUZZ_CASES", "500"))  # of all ops together
FRESH = "FUZZ_CASES" in os.environ  # `make fuzz` looks for new failures; `make test`'s share is the same each time
HANG = 900  # seconds that no case takes, on a busy machine either
# A result may be off by as much as the rounding of the arguments moves it, this many times.
MARGIN = 16

ran: Counter[str] = Counter()


@dataclass(frozen=True)
class Case:
    arguments: Mapping[str, Any]
    seed: int  # of the incoming gradients, and of everything else that is chosen while the case runs
    spoilt: str | None = None  # the argument that must be refused


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An op as the runner needs it.

    Args:
        arguments: of the backend's name: a strategy for the arguments of ``run``, with an ``Array`` for each tensor.
        run: tensor or tuple of them; the first dimension of each is the rows that must not disturb each other.
        reference: the definition; takes the arguments with float64 in the place of floating-point tensors. None
            runs ``run`` on the backend "reference".
        spoil: of good arguments: for the name of an argument, what must be refused in its place.
        labels: arguments whose values Triton's kernels do not refuse.
        row_by_row: further arguments that have a row for each of the results'.
        gradients: arguments in which ``run`` is differentiable; the rows of the first are those of the results.
        changed: arguments that it changes in place.
        rounding: of arguments: by how much of their size they are moved to see what rounding does, where that is not
            the arithmetic's own; 0 where the definition jumps.
        nan_may_stop: what is NaN in the reference may be a number: a product with a weight of 0, left out.
        exact: the reference takes the very dtypes, and the result is the same to the last bit.
        tolerance: of values and of gradients; takes place, dtype and the arguments.
        size: of the arguments: how large a result is that has not cancelled.
        unit: of the arguments: how long a row's gradient is if nothing in it cancels, of a loss that is a sum of rows.
        loose: of the variants of a call (see ``check``), those that agree to rounding only.
        unclear: of the arguments in float64: rows whose gradient is not compared with the reference's.
        beyond: of the arguments in float64: whether a result must be finite, but the reference cannot tell which.
        weight, triton_weight: the share of all cases; 0 where there is no such kernel.
    """

    name: str
    arguments: Callable[[str], st.SearchStrategy[dict[str, Any]]]
    run: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    spoil: Callable[[dict[str, Any]], dict[str, list[Any]]] = lambda arguments: {}
    labels: Sequence[str] = ()
    row_by_row: Sequence[str] = ()
    gradients: Sequence[str] = ()
    changed: Sequence[str] = ()
    rounding: Mapping[str, float] = field(default_factory=dict)
    nan_may_stop: bool = False
    exact: bool = False
    tolerance: Callable[[Place, torch.dtype, Mapping[str, Any]], tuple[float, float]] = field(
        default=lambda place, dtype, arguments: tolerances(dtype)
    )
    size: Callable[[Mapping[str, Any]], float] = lambda arguments: 1.0
    unit: Callable[[Mapping[str, Any]], float] = lambda arguments: 0.03
    loose: Sequence[str] = ()
    unclear: Callable[..., Tensor] | None = None
    beyond: Callable[..., bool] = lambda **arguments: False
    weight: float = 1.0
    triton_weight: float = 0.15

    def cases(self, backend: str) -> st.SearchStrategy[Case]:
        @st.composite
        def draw_case(draw: st.DrawFn) -> Case:
            arguments = draw(self.arguments(backend))
            spoilt = None
            if draw(st.integers(0, 9)) == 9:
                choices = self.spoil(arguments)
                if backend == "triton":
                    choices = {name: values for name, values in choices.items() if name not in self.labels}
                if choices:
                    spoilt = draw(st.sampled_from(sorted(choices)))
                    arguments[spoilt] = draw(st.sampled_from(choices[spoilt]))
            return Case(arguments, draw(seeds), spoilt)

        return draw_case()


def fuzz(*entries: Entry) -> dict[str, Callable[[], None]]:
    """A test for each entry on each backend, for the caller's globals."""
    tests = {}
    for entry in entries:
        for backend, weight in (("native", entry.weight), ("triton", entry.triton_weight)):
            if weight:
                tests[f"test_{entry.name}_{backend}"] = _test(entry, backend, weight)
    return tests


TOTAL_WEIGHT = 32.55  # of all entries on all backends


def _test(entry: Entry, backend: str, weight: float) -> Callable[[], None]:
    name = f"{entry.name} {backend}"

    @settings(
        max_examples=max(round(CASES * weight / TOTAL_WEIGHT), 1),
        deadline=None,
        derandomize=not FRESH,
        print_blob=True,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=entry.cases(backend))
    def run(case: Case) -> None:
        ran[name] += 1
        with watched(f"{name}\n{case}\n"):
            check(entry, backend, case)

    # what hypothesis tells its saved examples apart by
    run.hypothesis.inner_test.__name__ = run.__name__ = run.__qualname__ = f"test_{entry.name}_{backend}"
    run.__module__, run.fuzzed = entry.arguments.__module__, name
    if backend == "triton":
        skip = pytest.mark.skipif(HAS_CUDA or NO_TRITON is not None, reason=NO_TRITON or "a GPU runs no interpreter")
        return skip(run)
    return run


@contextmanager
def watched(case: str) -> Iterator[None]:
    """The case lies in a file while it runs, with the stack below it if it hangs; report.py shows what was left there.

    (A hung process ends itself; pytest's own handler writes the stack of a crash to stderr.)
    """
    WATCHED.mkdir(parents=True, exist_ok=True)
    path = WATCHED / f"{os.getpid()}.txt"
    with path.open("w") as file:
        file.write(case)
        file.flush()
        faulthandler.dump_traceback_later(HANG, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            path.unlink()


def check(entry: Entry, backend: str, case: Case) -> None:
    place = Place(backend, "cpu")
    if case.spoilt is not None:
        for name in ("native", "reference") if backend == "native" else ("triton",):
            with ltfast.backend(name):
                check_refused(entry, case)
        return
    expected, spread, unclear = what_is_expected(entry, backend, case)
    values, memory = make(case.arguments)
    finite = all(x.isfinite().all() for x in tensors(values) if x.is_floating_point())
    before = [flat.clone() for _, flat in memory]
    with ltfast.backend(backend), instruction_set(case.seed if backend == "native" else None):
        actual = outcome(entry, values, case.seed)
        put_back(entry, case, values)
        for (_, flat), old in zip(memory, before, strict=True):
            assert same_bytes(flat, old), "an argument was changed, or the memory around one"
        compare(entry, place, case, actual, expected, spread, unclear, finite, "the result")
        for name, again in variants(entry, backend, case):
            if name in entry.loose:
                compare(entry, place, case, again, expected, spread, unclear, finite, name)
            else:
                for key, one in again.items():
                    assert same(one, actual[key]), f"{name}: {key} differs from the first call's\n{one}\n{actual[key]}"


def check_refused(entry: Entry, case: Case) -> None:
    values, _ = make(case.arguments)
    with pytest.raises((ValueError, TypeError), match=case.spoilt):
        entry.run(**values)


Outcome = dict[str, Tensor]


def outcome(entry: Entry, values: dict[str, Any], seed: int, run: Callable[..., Any] | None = None) -> Outcome:
    """Results, and the gradients of a weighted sum of them."""
    values = dict(values)
    inputs = {name: values[name].detach().requires_grad_() for name in entry.gradients if values[name] is not None}
    results = (run or entry.run)(**values | inputs)
    results = results if isinstance(results, tuple | list) else (results,)
    found = {f"result {i}": result.detach() for i, result in enumerate(results)}
    generator = torch.Generator().manual_seed(seed)
    heads, weights = [], []
    for result in results:
        if result.requires_grad:
            # exact in every dtype
            weight = torch.randint(4, 17, result.shape, generator=generator).to(result.dtype) / 8
            heads.append(result)
            weights.append(weight if seed % 2 else torch.ones_like(weight))
    if heads:
        for name, gradient in zip(inputs, torch.autograd.grad(heads, list(inputs.values()), weights), strict=True):
            found[f"gradient of {name}"] = gradient
    return found


def what_is_expected(entry: Entry, backend: str, case: Case) -> tuple[Outcome, Outcome, Tensor | None]:
    """The reference's outcome, how far it moves with the rounding of the arguments, and rows that are not clear."""
    values, _ = make(case.arguments)
    if entry.exact:
        found = outcome(entry, values, case.seed, entry.reference)
        return found, {}, None
    wide = {name: convert(value, torch.Tensor.double) for name, value in values.items()}
    unclear = None if entry.unclear is None else entry.unclear(**wide)
    double = main_dtype(values) == torch.float64 and backend == "native"
    spread: Outcome = {}
    with ltfast.backend("reference"):
        expected = outcome(entry, wide, case.seed, entry.reference)
        for turn in range(4):  # there and back: two numbers that are equal come apart either way
            generator = torch.Generator().manual_seed(case.seed + turn // 2)
            moved = {}
            for name, value in wide.items():
                step = (-1) ** turn * entry.rounding.get(name, 2.0**-53 if double else 2.0**-24)
                moved[name] = convert(value, partial(move, step=step, generator=generator))
            for key, one in outcome(entry, moved, case.seed, entry.reference).items():
                distance = (one - expected[key]).abs().nan_to_num(torch.inf)
                spread[key] = torch.maximum(spread[key], distance) if key in spread else distance
    return expected, spread, unclear


def move(x: Tensor, step: float, generator: torch.Generator) -> Tensor:
    return x * (1 + step * torch.randn(x.shape, dtype=torch.float64, generator=generator))


def variants(entry: Entry, backend: str, case: Case) -> Iterator[tuple[str, Outcome]]:
    """The same call again, with contiguous arguments, without gradients, and with two threads."""
    dense = {name: convert(value, contiguous, kinds=None) for name, value in make(case.arguments)[0].items()}
    yield "contiguous arguments", outcome(entry, dense, case.seed)
    if backend == "triton":  # the interpreter is slow
        return
    yield "a second call", outcome(entry, make(case.arguments)[0], case.seed)
    if entry.gradients:
        with torch.no_grad():
            results = entry.run(**make(case.arguments)[0])
        results = results if isinstance(results, tuple | list) else (results,)
        yield "without gradients", {f"result {i}": result for i, result in enumerate(results)}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield "two threads", outcome(entry, make(case.arguments)[0], case.seed)
    finally:
        torch.set_num_threads(threads)


def compare(
    entry: Entry,
    place: Place,
    case: Case,
    actual: Outcome,
    expected: Outcome,
    spread: Outcome,
    unclear: Tensor | None,
    finite: bool,
    what: str,
) -> None:
    values, _ = make(case.arguments)
    for key, one in actual.items():
        what_key = f"{what}: {key}"
        other = expected[key]
        assert one.shape == other.shape, f"{what_key}: shape {tuple(one.shape)}, expected {tuple(other.shape)}"
        if entry.exact or not one.is_floating_point():
            assert same(one, other), f"{what_key} is not the reference's\n{one}\n{other}"
            continue
        if finite:
            may_not = ~(other.abs() <= room(one))
            assert_all(one.isfinite() | may_not, f"{what_key} is not finite for finite arguments", one)
        if entry.beyond(**values):
            continue
        of_values, of_gradients = entry.tolerance(place, main_dtype(values), case.arguments)
        if key.startswith("gradient"):
            name = key.removeprefix("gradient of ")
            from_broken = broken_rows(values[name])
            for beside in entry.row_by_row:
                if values[beside].is_floating_point():
                    from_broken = from_broken | broken_rows(values[beside])
            if name != entry.gradients[0] and not finite:  # all rows meet in each of its own
                from_broken = torch.ones_like(from_broken)
            mean = case.arguments.get("reduction") not in ("sum", "none")
            unit = entry.unit(case.arguments) / (max(len(from_broken), 1) if mean else 1)
            tolerance = gradient_tolerance(place, one, of_gradients)
            shown = actual["result 0"].isnan().any()  # a gradient of 0 beside a loss of NaN misleads nobody
            compare_gradient(one, other, spread[key], unclear, from_broken, shown, unit, tolerance, what_key)
        else:
            size = entry.size(case.arguments)
            compare_values(one, other, spread[key], entry.nan_may_stop, size, of_values, what_key)


def compare_values(
    actual: Tensor,
    expected: Tensor,
    spread: Tensor,
    nan_may_stop: bool,
    size: float,
    tolerance: float,
    what: str,
) -> None:
    beyond = expected.abs() > room(actual)
    actual_double = actual.double()
    as_it_should = (actual.isnan() == expected.isnan()) | beyond | (expected.isnan() & nan_may_stop)
    assert_all(as_it_should, f"{what} is NaN elsewhere than it should be", actual, expected)
    large = (actual_double.abs() > 0.8 * torch.finfo(actual.dtype).max) & (actual_double.sign() == expected.sign())
    assert_all(~beyond | large | actual.isnan(), f"{what} is not as large as it should be", actual, expected)
    error = (actual_double - expected).abs()
    allowed = tolerance * expected.abs().clamp(min=size) + MARGIN * spread
    assert_all(beyond | expected.isnan() | (error <= allowed), f"{what} is off", actual, expected, error / allowed)


def compare_gradient(
    actual: Tensor,
    expected: Tensor,
    spread: Tensor,
    unclear: Tensor | None,
    from_broken: Tensor,
    shown: Tensor,
    unit: float,
    tolerance: float,
    what: str,
) -> None:
    """Row by row, as ``ops.compare.row_error``. A row that comes from NaN or infinities may be NaN in any case.

    Args:
        unit: rows shorter than that have nearly cancelled.
    """
    rows = len(from_broken)
    if not actual.numel():
        return
    one, other, moved = (x.reshape(rows, -1).double() for x in (actual, expected, spread))
    broken = ~other.isfinite().all(1)
    beyond = (other.abs() > room(actual)).any(1)
    ours = one.isfinite().all(1)
    assert_all(~broken | beyond | ~ours | shown, f"{what}: a row is finite that should not be", actual, expected)
    assert_all(broken | beyond | ours | from_broken, f"{what}: a row is not finite that should be", actual, expected)
    clear = ~broken & ~beyond & ours
    if unclear is not None:
        clear &= ~unclear
    if not clear.any():
        return
    one, other, moved = one[clear], other[clear], moved[clear]
    norms = other.norm(dim=1)
    scale = norms.clamp(min=max(0.1 * norms.max().item(), unit))
    # results below the normal range are flushed to 0; float16 has them
    info = torch.finfo(actual.dtype)
    least = info.smallest_normal * (info.eps if actual.dtype == torch.float16 else 1)
    allowed = tolerance * scale + MARGIN * moved.norm(dim=1) + 2 * least * one.shape[1] ** 0.5
    error = (one - other).norm(dim=1)
    assert_all(error <= allowed, f"{what} is off", one, other, error / allowed)


def broken_rows(x: Tensor) -> Tensor:
    return ~(x if x.dim() else x[None]).isfinite().flatten(1).all(1) if x.dim() > 1 else ~x.reshape(-1).isfinite()


def gradient_tolerance(place: Place, gradient: Tensor, tolerance: float) -> float:
    """A gradient is rounded to its dtype, and again if the incoming one is not 1. (The interpreter cuts.)"""
    of_half = 2e-2 if place.backend == "triton" else 1e-2
    return max(tolerance, {torch.bfloat16: of_half, torch.float16: 1.5e-3, torch.float32: 1e-6}.get(gradient.dtype, 0))


def room(x: Tensor) -> float:
    return 0.9 * torch.finfo(x.dtype).max


def assert_all(condition: Tensor, message: str, *shown: Tensor) -> None:
    if not condition.all():
        raise AssertionError("\n".join([f"{message}, at {(~condition).nonzero()[:8].tolist()}", *map(str, shown)]))


def make(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, Tensor]]]:
    """The arguments with their tensors, and all memory that these lie in."""
    memory: list[tuple[str, Tensor]] = []

    def made(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [made(name, one) for one in value]
        if not hasattr(value, "make"):
            return value
        tensor, flat = value.make()
        memory.append((name, flat))
        return tensor

    return {name: made(name, value) for name, value in arguments.items()}, memory


def put_back(entry: Entry, case: Case, values: dict[str, Any]) -> None:
    """What a call may change, as it was."""
    for name in entry.changed:
        for array, tensor in zip(case.arguments[name], values[name], strict=True):
            tensor.copy_(array.values())


def convert(value: Any, function: Callable[[Tensor], Tensor], kinds: Sequence[type] | None = ()) -> Any:
    """Floating-point tensors, or all where ``kinds`` is None, by a function."""
    if isinstance(value, list):
        return [convert(one, function, kinds) for one in value]
    if isinstance(value, Tensor) and (kinds is None or value.is_floating_point()):
        return function(value)
    return value


def contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def tensors(values: Mapping[str, Any]) -> list[Tensor]:
    found = []
    for value in values.values():
        found += [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, Tensor)]
    return found


def main_dtype(values: Mapping[str, Any]) -> torch.dtype:
    """Of the first floating-point tensor: that which decides on the arithmetic."""
    return next((x.dtype for x in tensors(values) if x.is_floating_point()), torch.float32)


def same(one: Tensor, other: Tensor) -> bool:
    """The same numbers; NaN is NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@contextmanager
def instruction_set(seed: int | None) -> Iterator[None]:
    """One that the processor has, by a seed; None leaves it."""
    if seed is None:
        yield
        return
    native = backends.native()
    before = native.isa()
    native.use_isa(native.isas()[seed // 2 % len(native.isas())])
    try:
        yield
    finally:
        native.use_isa(before)
