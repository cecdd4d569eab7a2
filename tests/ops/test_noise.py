import math

import numpy as np
import pytest
import torch
from scipy.special import erfinv

import ltfast
from ltfast.ops.core import backends
from ltfast.ops.noise import draw_seed, half_normal
from ltfast.ops.noise.reference import philox

DRAWS = 10_000_000


def native_noise(rows: int, columns: int, seed: int, isa: str | None = None) -> torch.Tensor:
    native = backends.native()
    out = torch.full((rows, columns), math.nan)
    before = native.isa()
    try:
        if isa is not None:
            native.use_isa(isa)
        native.half_normal(out.data_ptr(), seed, rows, columns, torch.get_num_threads())
    finally:
        native.use_isa(before)
    return out


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123, the generator's own distribution
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    seed = torch.tensor([key[0] | key[1] << 32], dtype=torch.uint64).view(torch.int64)
    words = philox(*(torch.tensor([c]) for c in counter), seed)
    assert [int(word) for word in words] == expected


def test_reference_is_the_exact_quantile():
    seed = torch.tensor([42])
    row, column = torch.meshgrid(torch.arange(50), torch.arange(203), indexing="ij")
    words = torch.stack(philox(column // 4, row, row * 0, row * 0, seed))
    word = words.gather(0, (column % 4)[None])[0]
    exact = np.minimum(math.sqrt(2) / 3 * erfinv((word >> 8).numpy() * 2.0**-24), 1)
    np.testing.assert_allclose(half_normal(50, 203, seed).numpy(), exact, atol=4e-7)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (7, 1021), (2, 1024), (5, 4099)])
@pytest.mark.parametrize("isa", backends.native().isas())
def test_native_noise_is_the_reference(shape, isa):
    seed = draw_seed(torch.device("cpu"))
    torch.testing.assert_close(native_noise(*shape, seed.item(), isa), half_normal(*shape, seed), atol=4e-7, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 1021), (3, 4099)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_triton_noise_is_the_reference(shape, device):
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("the GPU runs the same kernel")
    if no_triton := backends.why_not("triton", torch.device("cuda")):
        pytest.skip(no_triton)
    from ltfast.ops.noise.triton import half_normal as triton_noise

    seed = draw_seed(torch.device("cpu"))
    noise = triton_noise(*shape, seed.to(device)).cpu()
    torch.testing.assert_close(noise, half_normal(*shape, seed), atol=4e-7, rtol=0)


def test_mean_and_variance_over_ten_million_draws():
    noise = native_noise(1000, DRAWS // 1000, seed=20231123).double()
    # Moments of |e|, e ~ N(0, s = 1/3) clipped at 1 = 3 s; Phi and phi at 3.
    s, density, inside = 1 / 3, math.exp(-4.5) / math.sqrt(2 * math.pi), math.erf(3 / math.sqrt(2))
    mean = 2 * s * (1 / math.sqrt(2 * math.pi) - density) + (1 - inside)
    square = s**2 * (inside - 2 * 3 * density) + (1 - inside)
    variance = square - mean**2
    assert abs(noise.mean() - mean) < 3 * math.sqrt(variance / DRAWS)
    fourth = ((noise - mean) ** 4).mean()
    assert abs(noise.var() - variance) < 3 * math.sqrt((fourth - variance**2) / DRAWS)
    assert noise.min() >= 0
    assert noise.max() == 1
    assert abs((noise == 1).double().mean() - (1 - inside)) < 3 * math.sqrt((1 - inside) / DRAWS)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].item()


def test_rows_columns_and_seeds_are_independent():
    seed = int(torch.randint(2**62, ()))
    noise = native_noise(1000, 1000, seed)
    bound = 4.5 / math.sqrt(noise.numel() - 1000)
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs(correlation(noise[:, lag:], noise[:, :-lag])) < bound
        assert abs(correlation(noise[lag:], noise[:-lag])) < bound
    for other in (seed + 1, seed ^ 1 << 32, seed ^ 1 << 61):  # neighbouring steps, both halves of the key
        assert abs(correlation(noise, native_noise(1000, 1000, other))) < bound


def test_seeds_follow_the_generator():
    cpu = torch.device("cpu")
    torch.manual_seed(7)
    first, second = draw_seed(cpu), draw_seed(cpu)
    torch.manual_seed(7)
    assert first == draw_seed(cpu)
    assert first != second
    one, two = (draw_seed(cpu, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one == two
    with ltfast.backend("reference"):
        assert draw_seed(cpu, torch.Generator().manual_seed(3)) == one
