import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import ltfast
from ltfast.ops import queue_softmax
from ltfast.ops.queue_softmax import key_gradient_op, merge, queue_softmax_op
from ops.compare import relative_error

SHAPES = [(1, 1, 1), (3, 7, 5), (37, 101, 17), (3, 40, 150), (70, 33, 128)]  # queries, keys, width
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def unit(rows, width, place=None, dtype=torch.float64):
    return F.normalize(torch.randn(rows, width, dtype=torch.float64), dim=1).to(place and place.device, dtype)


def plain(queries, keys, temperature=0.07, valid=None, exclude=None):
    """In float64, from the formula."""
    valid = valid if valid is None else int(valid)
    q, k = queries.double(), keys[:valid].double()
    logits = q @ k.T / temperature
    if exclude is not None:
        logits = logits.masked_fill(torch.arange(len(k), device=k.device) == exclude[:, None], -torch.inf)
    lse = logits.logsumexp(1)
    return lse, torch.exp(logits - lse[:, None]) @ k


def with_gradients(function, queries, keys, incoming):
    queries, keys = queries.detach().requires_grad_(), keys.detach().requires_grad_()
    lse, mean = function(queries, keys)
    return lse.detach(), mean.detach(), *torch.autograd.grad((lse * incoming.to(lse)).sum(), (queries, keys))


def compare(place, queries, keys, *, dtype=None, **options):
    """Results and gradients, each to what its dtype holds."""
    incoming = torch.linspace(-1, 1, len(queries), device=queries.device).double() + 0.1
    actual = with_gradients(lambda q, k: queue_softmax(q, k, **options), queries, keys, incoming)
    expected = with_gradients(lambda q, k: plain(q, k, **options), queries.double(), keys.double(), incoming)
    assert actual[0].dtype == actual[1].dtype == (torch.float64 if queries.dtype == torch.float64 else torch.float32)
    assert (actual[2].dtype, actual[3].dtype) == (queries.dtype, keys.dtype)
    arithmetic = queries.dtype
    if place.device == "cpu" and arithmetic in (torch.bfloat16, *[torch.float16] * (place.backend == "native")):
        arithmetic = torch.float32  # half precision is converted
    stored = {1: arithmetic, 2: queries.dtype, 3: keys.dtype}
    assert relative_error(actual[0], expected[0]) <= TOLERANCE[arithmetic]
    for i, one in stored.items():
        scale = max(expected[i].abs().max().item(), 1)
        tolerance = max(TOLERANCE[one], 5 * TOLERANCE[arithmetic])
        assert (actual[i].double() - expected[i]).abs().max().item() <= tolerance * scale, i


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients(place, shape, dtype):
    rows, columns, width = shape
    compare(place, unit(rows, width, place, dtype), unit(columns, width, place, dtype))


@pytest.mark.parametrize("of_keys", DTYPES, ids=str)
def test_queues_of_another_dtype(place, of_keys):
    compare(place, unit(9, 20, place, torch.float32), unit(60, 20, place, of_keys), temperature=0.2)


@pytest.mark.parametrize("valid", [1, 31, 64])
def test_only_the_first_keys_count(place, valid):
    queries, keys = unit(5, 12, place, torch.float32), unit(64, 12, place, torch.float32)
    counted = torch.tensor(valid, device=place.device)
    exclude = torch.arange(5, device=place.device)
    for count in (valid, counted):
        compare(place, queries, keys, valid=count)
    if valid > 1:
        compare(place, queries, keys, valid=counted, exclude=exclude)
    keys[valid:] = torch.nan
    for count in (valid, counted):
        assert queue_softmax(queries, keys, valid=count)[1].isfinite().all()


@pytest.mark.parametrize("rows", [1, 40])
def test_a_column_left_out(place, rows):
    queries, keys = unit(rows, 12, place, torch.float32), unit(70, 12, place, torch.float32)
    compare(place, queries, keys, exclude=torch.randint(-1, 70, (rows,), device=place.device))
    keys[:rows] = queries  # what a batch's own queries are: by far the largest term
    compare(place, queries, keys, exclude=torch.arange(rows, device=place.device))


def test_no_key_at_all(place):
    queries, keys = unit(3, 4, place, torch.float32).requires_grad_(), unit(1, 4, place, torch.float32).requires_grad_()
    for options in (
        {"valid": 0},
        {"valid": torch.tensor(0, device=place.device)},
        {"exclude": torch.zeros(3, dtype=torch.int64, device=place.device)},
    ):
        lse, mean = queue_softmax(queries, keys, **options)
        assert lse.isneginf().all()
        assert (mean == 0).all()
        for gradient in torch.autograd.grad(lse, (queries, keys), torch.ones_like(lse)):
            assert (gradient == 0).all()


def test_strides(place):
    wide = torch.randn(40, 60, device=place.device)
    compare(place, wide[:, ::3], wide[::2, 5:45:2], temperature=5.0)
    compare(place, wide.t()[:, :30], wide.t()[7:, 10:], temperature=5.0)
    compare(place, wide[:1].expand(4, -1), wide, temperature=5.0)


def test_extremes_are_finite(place):
    queries, keys = unit(6, 8, place, torch.float32), unit(50, 8, place, torch.float32)
    for temperature in (1e-4, 1e4):
        results = with_gradients(
            lambda q, k, t=temperature: queue_softmax(q, k, temperature=t), queries, keys, torch.ones(6)
        )
        assert all(x.isfinite().all() for x in results)
    compare(place, queries * 10, keys, temperature=1.0)
    compare(place, queries * 0, keys)


def test_a_bad_query_stays_in_its_row(place):
    queries, keys = unit(4, 5, place, torch.float32), unit(50, 5, place, torch.float32)
    queries[2, 1] = torch.nan
    lse, mean = queue_softmax(queries, keys)
    assert lse[2].isnan()
    assert mean[2].isnan().any()
    assert lse[[0, 1, 3]].isfinite().all()
    assert mean[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("columns", [1, 2, 3, 17, 513])
def test_a_bad_query_among_few_keys(place, columns, value):
    """PyTorch's attention takes products that are all NaN for masked ones where there are few of them."""
    queries, keys = unit(4, 16, place, torch.float32), unit(columns, 16, place, torch.float32)
    if place.backend == "triton" and columns < 17:
        value = torch.nan  # there all of few products may be -inf
    queries[2, 1] = value
    for exclude in (None, torch.tensor([-1, columns, -1, -1], device=place.device)):
        lse, mean = queue_softmax(queries, keys, exclude=exclude)
        assert lse.isnan().tolist() == [False, False, True, False]
        assert mean.isnan().any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("columns", [1, 3, 513, 700])
def test_a_bad_key_is_never_overlooked(place, columns):
    queries, keys = unit(4, 16, place, torch.float32), unit(columns, 16, place, torch.float32)
    keys[-1, 3] = torch.nan
    lse, mean = queue_softmax(queries, keys)
    assert lse.isnan().all()
    assert mean.isnan().any(1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_only_key_has_all_the_weight(place, dtype):
    """Whatever the products are rounded to, and in half precision they are rounded by much here."""
    queries, key = unit(9, 6, place, dtype), 10 * unit(1, 6, place, torch.float32)
    key.requires_grad_()
    lse, mean = queue_softmax(queries, key, temperature=0.01)
    (gradient,) = torch.autograd.grad(lse.sum(), key)
    expected = queries.double().sum(0, keepdim=True) / 0.01
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=0.1)  # of 9 times 100
    torch.testing.assert_close(
        mean, key.detach().to(mean).expand_as(mean), rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=0
    )


def test_weights_of_large_products(place):
    """The backward pass has them from the lse, whose last bit is then more than 1."""
    queries, keys = unit(3, 4, place, torch.float32) * 1e4, unit(1, 4, place, torch.float32).requires_grad_()
    lse, _ = queue_softmax(queries, keys, temperature=1e-6)
    (gradient,) = torch.autograd.grad(lse.sum(), keys)
    assert gradient.norm() <= 3.01e10


def with_launches(monkeypatch, **changes):
    """Changes the tiles of the forward pass."""
    from ltfast.ops.queue_softmax import triton

    chosen = triton.attend_launch
    monkeypatch.setattr(triton, "attend_launch", lambda *given: dataclasses.replace(chosen(*given), **changes))


@pytest.mark.parametrize("peeled", [False, True])
@pytest.mark.parametrize("valid", [None, 0, 9, 64, 65])
def test_tiles_with_masks_and_without(place, monkeypatch, peeled, valid):
    """Tiles of 16 keys: several a program, two splits, the last tile cut off, excluded keys there and elsewhere."""
    if place.backend != "triton":
        pytest.skip("the tiles of the Triton kernel")
    with_launches(monkeypatch, rows=16, keys=16, peeled=peeled)
    queries, keys = unit(18, 10, place, torch.float32), unit(139, 10, place, torch.float32)
    count = None if valid is None else torch.tensor(valid, device=place.device)
    rows = torch.arange(18, device=place.device)
    far = torch.tensor([-1, 0, 63, 64, 127, 128, 138, 139, 2**32 + 3], device=place.device)
    if valid == 0:
        lse, mean = queue_softmax(queries, keys, valid=count, exclude=rows)
        assert lse.isneginf().all()
        assert (mean == 0).all()
        return
    for exclude in (None, far.repeat(2), rows + 121):
        compare(place, queries, keys, valid=count, exclude=exclude)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [40, 128, 256, 512])
def test_widths_with_several_tiles(place, width, dtype):
    """Each width has its own tiles; the last of 75 keys is cut off in all of them."""
    queries, keys = unit(9, width, place, dtype), unit(75, width, place, dtype)
    compare(place, queries, keys, exclude=torch.arange(66, 75, device=place.device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peeled_tiles_of_every_dtype(place, monkeypatch, dtype):
    if place.backend != "triton":
        pytest.skip("the tiles of the Triton kernel")
    with_launches(monkeypatch, peeled=True)
    queries, keys = unit(20, 20, place, dtype), unit(330, 20, place, dtype)
    compare(place, queries, keys)
    compare(
        place,
        queries,
        keys,
        valid=torch.tensor(200, device=place.device),
        exclude=torch.arange(20, device=place.device) * 9,
    )


@pytest.mark.parametrize("temperature", [1e-4, 1e38])
def test_extreme_temperatures_with_masks(place, temperature):
    """The factor of the logits must not make NaN of a masked one."""
    queries, keys = unit(6, 8, place, torch.float32), unit(150, 8, place, torch.float32)
    lse, mean = queue_softmax(queries, keys, temperature=temperature, exclude=torch.arange(6, device=place.device))
    assert lse.isfinite().all()
    assert mean.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_small_and_large_incoming_gradients_of_keys(place, dtype, scale):
    """Weights of half precision must not vanish or overflow."""
    queries, keys = unit(20, 16, place, dtype), unit(30, 16, place, torch.float32).requires_grad_()
    lse, _ = queue_softmax(queries, keys, temperature=0.1)
    (once,) = torch.autograd.grad(lse.sum(), keys, retain_graph=True)
    (scaled,) = torch.autograd.grad(lse.sum() * scale, keys)
    torch.testing.assert_close(scaled / scale, once, rtol=1e-5, atol=1e-6 * once.abs().max().item())


def in_blocks(queries, keys, temperature, valid, exclude, incoming):
    """lse, mean and the gradients in float64, some rows at a time."""
    found, of_keys = [], torch.zeros(keys.shape, dtype=torch.float64, device=keys.device)
    for rows in torch.arange(len(queries), device=keys.device).split(512):
        q, k, out = queries[rows].double(), keys[:valid].double(), exclude[rows]
        logits = q @ k.T / temperature
        logits.masked_fill_(torch.arange(valid, device=keys.device) == out[:, None], -torch.inf)
        lse = logits.logsumexp(1)
        p = logits.sub_(lse[:, None]).exp_()
        mean = p @ k
        weight = incoming[rows, None].double() / temperature
        of_keys[:valid] += p.T @ (q * weight)
        found.append((lse, mean, mean * weight))
    return *map(torch.cat, zip(*found, strict=True)), of_keys


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(300, 5000), (4096, 65537)], ids=str)
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_large_shapes_on_a_gpu(shape, width, dtype):
    """The sizes of a real queue: several tiles a program, several splits, and their merging."""
    rows, columns = shape
    place = torch.empty(0, device="cuda")
    queries, keys = (unit(n, width, place, dtype).requires_grad_() for n in (rows, columns))
    valid, exclude = columns - 70, torch.arange(rows, device="cuda") * (columns // rows)
    incoming = torch.linspace(0.1, 1, rows, device="cuda")
    lse, mean = queue_softmax(queries, keys, valid=torch.tensor(valid, device="cuda"), exclude=exclude)
    actual = (lse, mean, *torch.autograd.grad((lse * incoming).sum(), (queries, keys)))
    expected = in_blocks(queries.detach(), keys.detach(), 0.07, valid, exclude, incoming)
    assert relative_error(lse, expected[0]) <= TOLERANCE[dtype]
    for one, other in zip(actual[1:], expected[1:], strict=True):
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error.item() <= (1e-5 if dtype == torch.float32 else 1e-2)
    assert (actual[3][valid:] == 0).all()


@given(rows=st.integers(1, 300), columns=st.integers(1, 700), width=st.integers(1, 40), cut=st.integers(0, 700))
@settings(deadline=None, max_examples=50)
def test_parts_merge_into_the_whole(rows, columns, width, cut):
    queries, keys = unit(rows, width), unit(columns, width)
    whole = queue_softmax(queries, keys)
    parts = merge(queue_softmax(queries, keys[:cut]), queue_softmax(queries, keys[cut:]))
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole[0], plain(queries, keys)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (1, 40, 200, 800):
            queries, keys = unit(rows, 3), unit(2000, 3)
            for one, other in zip(queue_softmax(queries, keys), plain(queries, keys), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradcheck(backend):
    queries, keys = unit(4, 3).requires_grad_(), unit(6, 3).requires_grad_()
    exclude = torch.tensor([0, -1, 5, 2])

    def lse(q, k):
        return queue_softmax(q, k, temperature=0.3, valid=torch.tensor(5), exclude=exclude)[0]

    with ltfast.backend(backend):
        assert torch.autograd.gradcheck(lse, (queries, keys))
        assert torch.autograd.gradgradcheck(lse, (queries, keys))


def test_opcheck_and_compile():
    queries, keys = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    exclude = torch.tensor([0, -1, 5, 2])
    torch.library.opcheck(queue_softmax_op, (queries, keys, 0.5, torch.tensor(5), exclude))
    torch.library.opcheck(queue_softmax_op, (queries, keys, 0.5, None, None))
    lse, _ = queue_softmax_op(queries, keys, 0.5, None, None)
    torch.library.opcheck(
        key_gradient_op, (queries.detach(), keys.detach(), 0.5, None, None, lse.detach(), torch.ones(4), "native")
    )
    compiled = torch.compile(
        lambda q, k: queue_softmax(q, k, valid=5)[0].square().sum(), fullgraph=True, backend="aot_eager"
    )
    compiled(queries, keys).backward()
    expected = torch.autograd.grad(queue_softmax(queries, keys, valid=5)[0].square().sum(), (queries, keys))
    torch.testing.assert_close((queries.grad, keys.grad), expected)


def test_autocast_takes_its_dtype():
    queries, keys = torch.randn(4, 8), torch.randn(30, 8)
    with torch.autocast("cpu", torch.bfloat16):
        lse, _ = queue_softmax(queries, keys, temperature=1.0)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse, plain(queries.bfloat16(), keys, temperature=1.0)[0].float())


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input(backend):
    queries, keys = torch.randn(4, 3), torch.randn(6, 3)
    with ltfast.backend(backend):
        with pytest.raises(ValueError, match=r"queries has shape \(3,\): expected \(batch, width\)"):
            queue_softmax(queries[0], keys)
        with pytest.raises(ValueError, match=r"keys has shape \(6, 2\): expected \(keys, 3\), the queries' width"):
            queue_softmax(queries, keys[:, :2])
        with pytest.raises(TypeError, match=r"keys has dtype torch\.int64: expected float32"):
            queue_softmax(queries, keys.long())
        with pytest.raises(TypeError, match="keys is a list: expected a tensor"):
            queue_softmax(queries, [1])
        with pytest.raises(ValueError, match=r"temperature is 0\.0: expected a number over 0"):
            queue_softmax(queries, keys, temperature=0.0)
        for valid in (-1, 7):
            with pytest.raises(ValueError, match=f"valid is {valid}: expected 0 to 6, the number of keys"):
                queue_softmax(queries, keys, valid=valid)
        with pytest.raises(TypeError, match=r"valid is 1\.5: expected an integer"):
            queue_softmax(queries, keys, valid=1.5)
        for valid in (torch.tensor([3]), torch.tensor(3.0)):
            with pytest.raises(ValueError, match=r"valid is a tensor of .*: expected integers, shape \(\), on cpu"):
                queue_softmax(queries, keys, valid=valid)
        with pytest.raises(TypeError, match=r"exclude is of torch\.float32: expected a tensor of integers"):
            queue_softmax(queries, keys, exclude=torch.zeros(4))
        with pytest.raises(ValueError, match=r"exclude has shape \(3,\): expected \(4,\), one key per row"):
            queue_softmax(queries, keys, exclude=torch.zeros(3, dtype=int))
        with pytest.raises(ValueError, match="keys is on meta: expected the device of the queries, cpu"):
            queue_softmax(queries, keys.to("meta"))


def test_memory_does_not_grow_with_the_queue():
    """256 queries and 200,000 keys: their matrix would take 205 MB. In a process of its own, for the peak."""
    program = """
        import resource, torch
        from ltfast.ops import queue_softmax
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        queries = torch.randn(256, 64, requires_grad=True)
        queue_softmax(queries, torch.randn(1000, 64))[0].sum().backward()
        keys = torch.randn(200_000, 64, dtype=torch.bfloat16)
        before = peak()
        queue_softmax(queries, keys)[0].sum().backward()
        print(peak() - before)
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True, env=environment
    )
    assert float(run.stdout) < 40
