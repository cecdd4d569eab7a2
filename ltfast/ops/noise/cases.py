"""The launch of ``half_normal``, which only tests call."""

from collections.abc import Iterator

from ltfast.ops.core.cases import ROWS, OpCases, labels_on_gpu


def launches() -> Iterator[str]:
    from ltfast.ops.noise import triton

    triton.half_normal(ROWS, 1000, labels_on_gpu(1))
    yield "half_normal"


CASES = OpCases(launches=launches)
