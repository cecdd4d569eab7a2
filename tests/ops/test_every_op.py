"""Every op of the list on random sizes, dtypes and strides, against the reference in float64.

The files of ``tests/fuzz`` draw the arguments of one op each; this one needs no line for a new op.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ltfast
from ltfast import ops
from ltfast.ops.core.cases import Sizes
from ops.compare import GRADIENT_TOLERANCE, relative_error, row_error
from ops.conftest import NO_TRITON
from ops.every_op import EXAMPLES, function_and_tensor

DTYPES = st.sampled_from((torch.float64, torch.float32, torch.bfloat16, torch.float16))
BACKENDS = [
    "native",
    pytest.param("triton", marks=[pytest.mark.slow, pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))]),
]
BESSEL = ("log_iv", "bessel_ratio")  # float32 and float64 alone


def loss_and_gradient(name, x, function):
    x = x.detach().requires_grad_()
    loss = function(x)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_random_sizes(name, backend):
    @settings(deadline=None, max_examples=30 if backend == "native" else 3)
    @given(
        st.builds(Sizes, rows=st.integers(1, 9), classes=st.integers(1, 40), width=st.integers(2, 40), dtype=DTYPES),
        st.booleans(),
        st.integers(0, 2**32),
    )
    def check(sizes, transposed, seed):
        assume(name not in BESSEL or sizes.dtype.itemsize > 2)
        torch.manual_seed(seed)
        function, x = function_and_tensor(name, sizes)
        x = x.mT.contiguous().mT if transposed else x
        with ltfast.backend("reference"):
            expected = loss_and_gradient(name, x.double(), function)
        with ltfast.backend(backend):
            loss, gradient = loss_and_gradient(name, x, function)
        assert gradient.dtype == x.dtype
        assert gradient.shape == x.shape
        # losses are squares of results that may have been rounded to the dtype; with the classes split, the gradient is
        # a sum of two that nearly cancel; a classifier inside rounds logits and their gradient to the dtype
        # vmf's gradient is a difference of terms that are 1 / temperature = 10 times as large; of one class it is 0
        cancels = name.startswith("class_parallel") or (name == "vmf_cross_entropy" and sizes.dtype == torch.float32)
        factor = 40 if cancels else 20 if "linear" in name else 4
        tolerance = factor * GRADIENT_TOLERANCE[sizes.dtype]
        assert relative_error(loss, expected[0]) < tolerance
        assert row_error(gradient.flatten(1), expected[1].flatten(1)) < tolerance

    check()


VECTORS = {
    "agcl": lambda x, y, v: ops.agcl(x, y, v),
    "balanced_bce": lambda x, y, v: ops.balanced_bce(x, y, v),
    "cross_entropy": lambda x, y, v: ops.cross_entropy(x, y, v),
    "linear_cross_entropy": lambda x, y, v: ops.linear_cross_entropy(x, x, None, y, adjustment=v),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_gradient_that_would_be_dropped_is_refused(name):
    x, y, vector = torch.rand(3, 3, requires_grad=True), torch.tensor([0, 1, 2]), torch.rand(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"requires a gradient, which this loss does not give: expected .*\.detach"):
        VECTORS[name](x, y, vector)
    with torch.no_grad():
        VECTORS[name](x, y, vector)
