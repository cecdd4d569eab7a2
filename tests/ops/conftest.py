from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import ltfast
from fixtures import fresh_random_numbers  # noqa: F401
from ltfast.ops.core import backends

HERE = Path(__file__).parent
HAS_CUDA = torch.cuda.is_available()
NO_TRITON = backends.why_not("triton", torch.device("cuda"))


@dataclass(frozen=True)
class Place:
    """One implementation on one device."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"

    @property
    def interpreted(self) -> bool:
        return self.backend == "triton" and self.device == "cpu"

    def rows(self, number: int) -> int:
        """The number, but at most 6 in the interpreter: most kernels have a program a row, and it runs them in turn."""
        return min(number, 6) if self.interpreted else number


PLACES = [
    pytest.param(Place("native", "cpu"), id="native"),
    # The interpreter is switched on where there is no GPU; elsewhere the same kernels run on the GPU.
    pytest.param(
        Place("triton", "cpu"),
        id="triton-interpreter",
        marks=pytest.mark.skipif(HAS_CUDA or NO_TRITON is not None, reason=NO_TRITON or "a GPU runs the same kernels"),
    ),
    pytest.param(Place("triton", "cuda"), id="triton-gpu", marks=pytest.mark.gpu),
]


def pytest_collection_modifyitems(items):
    """Triton's interpreter is slow: `make test` uses it in two files with small tensors, and for blocks of classes."""
    for item in items:
        interpreted = "triton-interpreter" in item.name and item.path.parent == HERE
        quick = item.path.stem in ("test_autocast", "test_ignore_index") or "test_blocks_of_classes" in item.name
        if interpreted and not quick:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=PLACES)
def place(request):
    """Runs the test on every implementation."""
    with ltfast.backend(request.param.backend):
        yield request.param


@pytest.fixture(params=backends.native().isas())
def native_isa(request):
    """Runs the test on the native kernels of every instruction set that this machine has."""
    native = backends.native()
    before = native.isa()
    native.use_isa(request.param)
    with ltfast.backend("native"):
        yield Place("native", "cpu")
    native.use_isa(before)
