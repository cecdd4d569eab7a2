import itertools
import math
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ltfast
from ltfast.ops import apply_masks_, importance_threshold, taylor_importance_
from ltfast.ops.core import backends
from ltfast.ops.core.backends import BackendUnavailableError
from ltfast.ops.taylor import apply_op, reference, taylor_op, threshold_op
from ltfast.ops.taylor.tables import table
from ops.conftest import PLACES, Place

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (127,), (8, 3, 3, 3), (16, 5, 1, 1), (31, 33), (1009,)]


CUDA = backends.native().cuda
# The other functions run where the place says; these two have CUDA C++ too.
CHANGE_PLACES = [
    *PLACES,
    pytest.param(
        Place("native", "cuda"),
        id="native-gpu",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="ltfast was built without its CUDA kernels")],
    ),
]


@pytest.fixture(params=CHANGE_PLACES)
def change_place(request):
    with ltfast.backend(request.param.backend):
        yield request.param


def randn(shape, dtype=torch.float32, device="cpu"):
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def bits(tensor):
    """To compare: NaN payloads and the sign of 0 too."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(sizes[tensor.element_size()]).cpu()


def exact_update(accumulator, parameter, gradient):
    return accumulator.double().cpu() + (parameter.double().cpu() * gradient.double().cpu()) ** 2


def check_update(accumulators, parameters, gradients):
    expected = [exact_update(*row) for row in zip(accumulators, parameters, gradients, strict=True)]
    assert taylor_importance_(accumulators, parameters, gradients) is None
    for accumulator, exact in zip(accumulators, expected, strict=True):
        tolerance = 1e-14 if accumulator.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(accumulator.double().cpu(), exact, rtol=tolerance, atol=0)


def layouts(device="cpu"):
    """Tensors of one shape, (6, 4, 5, 3), in every kind of memory."""
    dense = randn((6, 4, 5, 3), device=device)
    return {
        "contiguous": dense,
        "channels_last": dense.contiguous(memory_format=torch.channels_last),
        "transposed": randn((3, 5, 4, 6), device=device).permute(3, 2, 1, 0),
        "sliced": randn((6, 9, 5, 8), device=device)[:, 1::2, :, 2:5],
        "offset": randn((361,), device=device)[1:].view(6, 4, 5, 3),
    }


def triples():
    """Of names of layouts: every pair meets in every two places."""
    names = list(layouts())
    for i, j in itertools.product(range(len(names)), repeat=2):
        yield names[i], names[j], names[(i + j) % len(names)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_update_of_all_dtypes(change_place, dtype):
    kinds = list(itertools.product(FLOATS, FLOATS, [(), (1,), (101,), (7, 3, 3, 3)]))
    accumulators = [randn(shape, dtype, change_place.device) for *_, shape in kinds]
    parameters = [randn(shape, kind, change_place.device) for kind, _, shape in kinds]
    gradients = [randn(shape, kind, change_place.device) for _, kind, shape in kinds]
    check_update([a.abs_() for a in accumulators], parameters, gradients)


def test_update_of_all_shapes_and_both_accumulators(change_place):
    accumulators = [torch.rand(shape, device=change_place.device) for shape in SHAPES]
    accumulators[3::2] = [a.double() for a in accumulators[3::2]]
    check_update(accumulators, *([randn(shape, device=change_place.device) for shape in SHAPES] for _ in range(2)))


def test_update_of_all_layouts(change_place):
    for first, second, third in triples():
        accumulator, parameter, gradient = (layouts(change_place.device)[name] for name in (first, second, third))
        strides, rest = accumulator.stride(), None
        if first == "sliced":
            rest = accumulator._base.clone()
        check_update([accumulator.abs_()], [parameter], [gradient])
        assert accumulator.stride() == strides
        if rest is not None:  # what lies between
            rest[:, 1::2, :, 2:5] = accumulator
            assert torch.equal(bits(accumulator._base), bits(rest))


def test_dense_tensors_are_not_copied(monkeypatch):
    monkeypatch.setattr(torch, "empty_strided", None)
    for name in ("contiguous", "channels_last", "transposed", "offset"):
        accumulator, parameter, gradient = (layouts()[name] for _ in range(3))
        check_update([accumulator.abs_()], [parameter], [gradient])
        apply_masks_([parameter], [parameter > 0], [gradient])


def plain_loop(accumulators, parameters, gradients):
    for accumulator, parameter, gradient in zip(accumulators, parameters, gradients, strict=True):
        accumulator += (parameter * gradient) ** 2


@pytest.mark.parametrize("threads", [1, 2])
def test_update_is_the_plain_loop_to_the_last_bit(native_isa, threads):
    """Also where a fused multiply-add would round otherwise, and among subnormals, overflows and NaN."""
    sizes = (1, 15, 16, 17, 1000, 65537)
    scales = torch.logspace(-38, 38, 39).repeat_interleave(1700)
    kinds = ["normal", "wide", "bits"]

    def values(size, kind):
        if kind == "bits":
            return torch.randint(-(2**31), 2**31, (size,)).int().view(torch.float32)
        return torch.randn(size) * (scales[torch.randperm(len(scales))[:size]].sqrt() if kind == "wide" else 1)

    lists = [[values(size, kind) for size in sizes for kind in kinds] for _ in range(3)]
    lists[0][::2] = [values.abs() for values in lists[0][::2]]
    expected = [values.clone() for values in lists[0]]
    before_last = expected[-3].clone()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        taylor_importance_(*lists)
    finally:
        torch.set_num_threads(before)
    plain_loop(expected, *lists[1:])
    for actual, exact in zip(lists[0], expected, strict=True):
        assert torch.equal(actual.isnan(), exact.isnan())
        assert torch.equal(bits(actual[~actual.isnan()]), bits(exact[~exact.isnan()]))
    # A fused multiply-add would have been seen: the last of the normal numbers, rounded once.
    normal = ~expected[-3].isnan()
    product = lists[1][-3] * lists[2][-3]
    once = (before_last.double() + product.double() ** 2).float()
    assert normal.all()
    assert not torch.equal(once, expected[-3])


def test_update_of_many_small_tensors(change_place):
    sizes = torch.randint(
        1, 30, (200 if change_place.backend == "triton" and change_place.device == "cpu" else 1000,)
    ).tolist()
    make = [[randn((size,), device=change_place.device) for size in sizes] for _ in range(3)]
    check_update([a.abs() for a in make[0]], *make[1:])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_update_and_threshold_of_ten_million(device):
    accumulator, parameter, gradient = (torch.randn(10_000_019, device=device) for _ in range(3))
    expected = accumulator.abs() + (parameter * gradient) ** 2
    accumulators = [accumulator.abs_()]
    taylor_importance_(accumulators, [parameter], [gradient])
    torch.testing.assert_close(accumulators[0], expected, rtol=1e-6, atol=0)
    check_threshold(accumulators, 0.37)


def test_parameters_of_a_model(change_place):
    """Leaves that require gradients, bfloat16 gradients beside float32 accumulators; autograd notices every change."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 2, 1))
    model.to(change_place.device)
    parameters = list(model.parameters())
    gradients = [torch.randn_like(parameter).bfloat16() for parameter in parameters]
    accumulators = [torch.zeros_like(parameter) for parameter in parameters]
    versions = [a._version for a in accumulators], [p._version for p in parameters]
    check_update(accumulators, parameters, gradients)
    assert all(a._version > before for a, before in zip(accumulators, versions[0], strict=True))
    assert [p._version for p in parameters] == versions[1]
    saved = parameters[0].exp()
    product = saved * parameters[0]
    apply_masks_(parameters, [p > 0 for p in parameters])
    assert all(p.requires_grad and p.is_leaf and (p <= 0).all() for p in parameters)
    assert all(p._version > before for p, before in zip(parameters, versions[1], strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def kthvalue(tensors, fraction, masks=None):
    values = torch.cat([tensor.flatten() for tensor in tensors])
    if masks is not None:
        values = values[torch.cat([mask.flatten() for mask in masks]).bool()]
    return values.kthvalue(max(round(fraction * len(values)), 1)).values


def check_threshold(tensors, fraction, masks=None):
    found = importance_threshold(tensors, fraction, masks=masks)
    expected = kthvalue(tensors, fraction, masks)
    assert found.shape == ()
    assert (found.dtype, found.device) == (tensors[0].dtype, tensors[0].device)
    assert found == expected or (found.isnan() and expected.isnan()), (found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threshold(place, dtype):
    tensors = [randn(shape, dtype, place.device) for shape in SHAPES]
    masks = [torch.rand(shape, device=place.device) < 0.4 for shape in SHAPES]
    check_threshold(tensors, 1e-300)
    check_threshold(tensors, 0.7)
    check_threshold([tensor.square() for tensor in tensors], 0.5, masks)
    check_threshold(tensors, 0.3, [mask.to(torch.uint8) * 64 for mask in masks])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threshold_on_every_instruction_set(native_isa, dtype):
    tensors = [randn((size,), dtype) for size in (5000, 30001, 2**19)]  # the native kernel samples so many
    for fraction in (0.01, 0.3, 1.0):
        check_threshold(tensors, fraction)
        check_threshold(tensors, fraction, [tensor > 0.1 for tensor in tensors])


def test_threshold_of_layouts(place):
    tensors = list(layouts(place.device).values())
    check_threshold(tensors, 0.4)
    masks = [tensor > 0 for tensor in layouts(place.device).values()]
    for shift in range(len(masks)):
        check_threshold(tensors, 0.4, masks[shift:] + masks[:shift])


def test_threshold_finds_every_rank(place):
    special = [0.0, -0.0, 1e-45, -1e-45, 1e-39, math.inf, -math.inf, math.nan, -math.nan, 3.4e38, -3.4e38, 1.0, 1.0]
    values = torch.tensor(special, device=place.device)
    assert values[7:9].signbit().tolist() == [False, True]
    for k in range(1, len(special) + 1):
        check_threshold([values[:5], values[5:]], k / len(special))
    check_threshold([values.double()], 0.5)


SPECIAL = st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-39, 1.0, 0.1])


@given(
    lists=st.lists(st.lists(st.one_of(st.floats(width=32), SPECIAL), max_size=30), min_size=1, max_size=5),
    fraction=st.one_of(st.floats(1e-9, 1.0), st.just(1.0)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    masked=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=300)
def test_any_threshold(lists, fraction, dtype, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.tensor(values, dtype=dtype) for values in lists]
    masks = [torch.rand(tensor.shape, generator=generator) < 0.6 for tensor in tensors] if masked else None
    if sum(len(values) for values in lists) == 0 or (masks and not any(mask.any() for mask in masks)):
        with pytest.raises(ValueError, match="expected"):
            importance_threshold(tensors, fraction, masks=masks)
    else:
        check_threshold(tensors, fraction, masks)


def test_threshold_of_equal_values_and_ties(place):
    for values in (torch.zeros(777), torch.full((5,), 3.5), torch.randint(3, (4000,)).float()):
        for fraction in (1e-9, 0.33, 1.0):
            check_threshold([values.to(place.device)], fraction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "sorted", "equal", "half are zero", "the sample misleads", "NaN"])
def test_threshold_of_long_lists(kind, dtype):
    # Of more than 2^19 values the native kernel takes a sample first. It falls back where the sample misleads.
    values = randn((700_001,), dtype)
    if kind == "sorted":
        values = values.sort().values
    elif kind == "equal":
        values.fill_(2.5)
    elif kind == "half are zero":
        values = values.clamp(min=0)
    elif kind == "the sample misleads":
        values[:: len(values) // 2**16] -= 100
    elif kind == "NaN":
        values[values > 1] = math.nan
    tensors = [values[:100], values[100:400_000], values[400_000:]]
    for fraction in (1e-9, 0.1, 0.5, 0.999, 1.0):
        check_threshold(tensors, fraction)
    for share in (0.5, 0.001):
        check_threshold(tensors, 0.3, [torch.rand(len(tensor)) < share for tensor in tensors])


def test_threshold_follows_the_thread_count():
    before = torch.get_num_threads()
    try:
        for tensors in ([torch.rand(100_003).pow(8), torch.rand(17)], [torch.rand(600_000), torch.rand(17)]):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                check_threshold(tensors, 0.61)
    finally:
        torch.set_num_threads(before)


def test_threshold_where_the_masks_leave_nothing(place):
    values, mask = [torch.rand(9, device=place.device)], [torch.zeros(9, dtype=torch.bool, device=place.device)]
    if place.backend == "native" and place.device == "cpu":
        with pytest.raises(ValueError, match="no value is left: expected masks with a True element"):
            importance_threshold(values, 0.5, masks=mask)
    else:
        assert importance_threshold(values, 0.5, masks=mask).isnan()


@pytest.mark.slow
def test_threshold_needs_no_memory():
    # In a process of its own: the peak of resident memory over a call, beside the values.
    script = """
        import torch
        from ltfast.ops import importance_threshold
        values = [torch.rand(4_000_000) for _ in range(10)]
        importance_threshold([torch.rand(100_000)], 0.5)
        def resident(peak):
            lines = open("/proc/self/status").read().splitlines()
            return next(int(l.split()[1]) for l in lines if l.startswith("VmHWM" if peak else "VmRSS"))
        open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
        before = resident(peak=False)
        importance_threshold(values, 0.5)
        print((resident(peak=True) - before) * 1024 / 160e6)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True, cwd="/"
    )
    assert float(result.stdout) < 0.02


def awkward(shape, dtype, device="cpu"):
    """Any bits: NaN with payloads, -0.0, subnormals."""
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(256, (*shape, size), dtype=torch.uint8)
    if dtype == torch.bool:
        raw %= 2
    return raw.view(dtype).view(shape).to(device)


def check_masks(tensors, masks, values):
    chosen = [bits(value) for value in values] if values else [torch.zeros_like(bits(tensor)) for tensor in tensors]
    expected = [
        torch.where(mask.cpu().bool(), value, bits(tensor))
        for tensor, mask, value in zip(tensors, masks, chosen, strict=True)
    ]
    assert apply_masks_(tensors, masks, values) is None
    for tensor, exact in zip(tensors, expected, strict=True):
        assert torch.equal(bits(tensor), exact)


MASKABLE = [*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("with_values", [False, True])
def test_masks_copy_bits(change_place, with_values):
    for dtype in MASKABLE:
        shapes = [shape for shape in SHAPES if shape]
        tensors, values = ([awkward(shape, dtype, change_place.device) for shape in shapes] for _ in range(2))
        masks = [torch.rand(shape, device=change_place.device) < 0.5 for shape in shapes]
        check_masks(tensors, masks, values if with_values else None)
        masks = [torch.randint(3, shape, device=change_place.device).to(torch.uint8) * 128 for shape in shapes]
        check_masks(tensors, masks, values if with_values else None)


def test_masks_on_every_instruction_set(native_isa):
    for dtype in FLOATS:
        tensor, value = awkward((20_011,), dtype), awkward((20_011,), dtype)
        check_masks([tensor[1:]], [torch.rand(20_010) < 0.3], [value[:-1]])
        check_masks([tensor], [torch.rand(20_011) < 0.3], None)


def test_masks_of_all_layouts_and_a_scalar(change_place):
    for first, second, third in triples():
        tensor, mask, value = (layouts(change_place.device)[name] for name in (first, second, third))
        scalars = [torch.tensor(x, device=change_place.device) for x in (2.0, True, -0.0)]
        check_masks([tensor, scalars[0]], [mask > 0, scalars[1]], [value, scalars[2]])
        check_masks([tensor], [mask > 1], None)


def test_several_dtypes_in_one_list(change_place):
    dtypes = [torch.float64, torch.bfloat16, torch.float32, torch.int8]
    tensors = [awkward((50 + i,), dtype, change_place.device) for i, dtype in enumerate(dtypes)]
    values = [awkward(tensor.shape, tensor.dtype, change_place.device) for tensor in tensors]
    check_masks(tensors, [torch.rand(tensor.shape, device=change_place.device) < 0.5 for tensor in tensors], values)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_opcheck_and_compile(backend):
    def make():
        shapes = ((3,), (), (2, 4), (0,))
        return [torch.rand(shape) for shape in shapes], *([randn(shape) for shape in shapes] for _ in range(2))

    if backend == "native":
        accumulators, parameters, gradients = make()
        masks = [parameter > 0 for parameter in parameters]
        torch.library.opcheck(taylor_op, (accumulators, parameters, gradients))
        torch.library.opcheck(threshold_op, (accumulators, masks, 0.5))
        torch.library.opcheck(threshold_op, (accumulators, [], 0.5))
        torch.library.opcheck(apply_op, (parameters, masks, gradients))
        torch.library.opcheck(apply_op, (parameters, masks, []))

    def step(accumulators, parameters, gradients):
        taylor_importance_(accumulators, parameters, gradients)
        threshold = importance_threshold(accumulators, 0.5)
        masks = [accumulator <= threshold for accumulator in accumulators]
        apply_masks_(parameters, masks, gradients)
        apply_masks_(gradients, masks)
        return threshold + accumulators[0].sum()

    with ltfast.backend(backend):
        lists = make()
        copies = [[tensor.clone() for tensor in tensors] for tensors in lists]
        result = torch.compile(step, fullgraph=True, backend="aot_eager")(*lists)
        torch.testing.assert_close(result, step(*copies))
        torch.testing.assert_close(lists, tuple(copies))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nothing_to_do(backend):
    with ltfast.backend(backend):
        taylor_importance_([], [], [])
        apply_masks_([], [])
        apply_masks_([], [], [])
        empty = [torch.ones(0)]
        taylor_importance_(empty, empty, empty)
        apply_masks_(empty, [torch.ones(0).bool()])
        for nothing in ([], empty):
            with pytest.raises(ValueError, match="accumulators has no element: expected one or more"):
                importance_threshold(nothing, 0.5)


E, W, I = torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3).long()  # noqa: E741
MEMORY = torch.ones(10)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        (([E], [W, W], [W]), ValueError, "parameters has length 2: expected 1"),
        (([E], [W], []), ValueError, "gradients has length 0: expected 1"),
        (([E, E.clone()], [W, W], [W, None]), TypeError, r"gradients\[1\] is a NoneType: expected a tensor"),
        (([E], [W], [W.to_sparse()]), TypeError, r"gradients\[0\] has layout torch\.sparse_coo: expected a dense"),
        (([E], [W], [I]), TypeError, r"gradients\[0\] has dtype torch\.int64: expected float32"),
        (([E.half()], [W], [W]), TypeError, r"accumulators\[0\] has dtype torch\.float16: expected float32 or float64"),
        (([E], [W.T], [W]), ValueError, r"parameters\[0\] has shape \(3, 2\): expected \(2, 3\)"),
        (([E], [W], [W.to("meta")]), ValueError, r"gradients\[0\] is on meta: expected the device of .*, cpu"),
        (([E, E], [W, W], [W, W]), ValueError, r"accumulators\[1\] shares memory with accumulators\[0\]"),
        (([MEMORY[:6], MEMORY[5:]], [MEMORY[:6], MEMORY[5:]], [MEMORY[:6], MEMORY[5:]]), ValueError, "shares memory"),
        (([E[0].expand(2, 3)], [W], [W]), ValueError, r"accumulators\[0\] has strides \(0, 1\) for shape \(2, 3\)"),
        (
            ([MEMORY.as_strided((2, 3), (2, 1))], [W], [W]),
            ValueError,
            r"accumulators\[0\] has strides \(2, 1\) for shape",
        ),
    ],
)
def test_bad_updates(backend, lists, error, message):
    before = [tensor.clone() for tensor in lists[0]]
    with ltfast.backend(backend), pytest.raises(error, match=message):
        taylor_importance_(*lists)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(lists[0], before, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_thresholds_and_masks(backend):
    with ltfast.backend(backend):
        for fraction in (0.0, -0.1, 1.0001, math.nan):
            with pytest.raises(ValueError, match=rf"fraction is {fraction}: expected a number in \(0, 1\]"):
                importance_threshold([E], fraction)
        with pytest.raises(TypeError, match=r"accumulators\[1\] has dtype torch\.float64: expected torch\.float32"):
            importance_threshold([E, E.double()], 0.5)
        with pytest.raises(TypeError, match=r"masks\[0\] has dtype torch\.float32: expected bool or uint8"):
            importance_threshold([E], 0.5, masks=[W])
        with pytest.raises(ValueError, match=r"masks has length 0: expected 1"):
            importance_threshold([E], 0.5, masks=[])
        with pytest.raises(ValueError, match="no value is left: expected masks with a True element"):
            importance_threshold([E], 0.5, masks=[E < 0])
        with pytest.raises(TypeError, match=r"values\[0\] has dtype torch\.float64: expected torch\.float32"):
            apply_masks_([W], [W > 0], [W.double()])
        with pytest.raises(TypeError, match=r"tensors\[0\] has dtype torch\.complex64: expected real numbers"):
            apply_masks_([W.cfloat()], [W > 0])
        with pytest.raises(ValueError, match=r"masks\[0\] has shape \(6,\): expected \(2, 3\)"):
            apply_masks_([W], [W.flatten() > 0])
        with pytest.raises(ValueError, match=r"tensors\[1\] shares memory with tensors\[0\]"):
            apply_masks_([W, W], [W > 0, W > 0])
        with pytest.raises(ValueError, match=r"values has length 0: expected 1"):
            apply_masks_([W], [W > 0], [])


def test_inference_mode(change_place):
    with torch.inference_mode():
        accumulators, parameters, gradients = ([randn((40,), device=change_place.device).abs()] for _ in range(3))
        check_update(accumulators, parameters, gradients)
        check_masks(parameters, [gradients[0] > 0.5], accumulators)


def test_columns_of_one_matrix_are_apart(change_place):
    matrix = torch.rand(6, 7, device=change_place.device)
    check_update(
        [matrix[:, :3], matrix[:, 3:]], *([randn((6, k), device=change_place.device) for k in (3, 4)] for _ in "wg")
    )


def test_the_reference_is_the_definition():
    accumulators, parameters, gradients = ([torch.rand(50, dtype=torch.float64)] for _ in range(3))
    with ltfast.backend("reference"):
        check_update(accumulators, parameters, gradients)
        check_threshold(accumulators, 0.4, [gradients[0] < 0.5])
        check_masks(parameters, [gradients[0] < 0.5], accumulators)
    assert importance_threshold(accumulators, 0.4) == reference.importance_threshold(accumulators, [], 0.4)
    assert backends.resolve(torch.device("cpu")) == "native"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", *["native"] * bool(CUDA)])
def test_cuda_graphs(backend):
    accumulators, parameters, gradients = ([randn((n,), device="cuda").abs() for n in (9, 5000)] for _ in range(3))
    masks = [parameter > 1 for parameter in parameters]

    def step():
        with ltfast.backend(backend):
            taylor_importance_(accumulators, parameters, gradients)
            apply_masks_(gradients, masks)
        return importance_threshold(accumulators, 0.5)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        threshold = step()
    for _ in range(3):
        expected = [exact_update(*row) for row in zip(accumulators, parameters, gradients, strict=True)]
        graph.replay()
        for accumulator, exact in zip(accumulators, expected, strict=True):
            torch.testing.assert_close(accumulator.double().cpu(), exact, rtol=1e-6, atol=0)
        assert threshold == kthvalue(accumulators, 0.5)
        assert all((gradient[mask] == 0).all() for gradient, mask in zip(gradients, masks, strict=True))


ROOT = Path(__file__).parents[2]


def test_native_on_a_gpu_needs_its_kernels():
    cuda = torch.device("cuda")
    assert backends.why_not("native", cuda) == "its kernels run on the CPU, the tensor is on cuda"
    reason = backends.why_not("native", cuda, in_cuda=True)
    assert reason is None if CUDA else "installed without its CUDA kernels" in reason
    detail = next(row["detail"] for row in backends.describe() if row["name"] == "native")
    assert detail.endswith("CUDA " + (", ".join(f"sm_{x}" for x in CUDA) or "left out"))
    with ltfast.backend("native"), pytest.raises(BackendUnavailableError, match="its kernels run on the CPU"):
        backends.resolve(cuda)


@pytest.mark.skipif(not CUDA, reason="ltfast was built without its CUDA kernels")
def test_launches_of_the_cuda_kernels():
    """How a list is spread over launches: the launch itself needs a GPU, and says so where there is none."""
    sizes = [0, 1, 4096, 4097, 100_000, 0, *torch.randint(1, 9000, (2000,)).tolist()]
    buffer = torch.empty(max(sizes) + 1)
    tensors = [buffer[i % 2 : size + i % 2] for i, size in enumerate(sizes)]
    packed = table((tensors, tensors), range(len(tensors)))
    launches = backends.native().cuda_launches(packed)
    seen = []
    for entries, chunks in launches:
        assert 0 < len(entries) <= 816
        first = 0
        for start, mask, values, count, first_chunk, code in entries:
            assert (mask, values, first_chunk) == (start, 0, first)
            assert bool(code >> 31) == (start % 16 == 0)
            first += -(-count // 4096)
            seen.append((start, count, code & 0x7FFFFFFF))
        assert chunks == first
    expected = [(x.data_ptr(), x.numel(), i) for i, x in enumerate(tensors) if x.numel()]
    assert seen == expected
    assert len(launches) == -(-len(expected) // 816)
    assert backends.native().cuda_launches(table(([], []), [])) == []
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA refused the launch: cudaError"):
            backends.native().cuda_apply_masks(packed, 0, 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_cuda_kernels_compile_without_spills(tmp_path, architecture):
    command = ["nvcc", "-std=c++17", "-fmad=false", "-Xptxas=-v", f"-arch={architecture}", "-cubin", "-o"]
    result = subprocess.run(
        [*command, tmp_path / "taylor.cubin", ROOT / "csrc/cuda/taylor.cu"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    print(result.stderr)
    usage = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert usage == [("0", "0", "0")] * 2
    assert all(int(number) <= 64 for number in re.findall(r"Used (\d+) registers", result.stderr))
