"""Every op of the list is captured in a CUDA graph, with its gradient, and replayed with other inputs. Without a GPU,
the same forward passes run on tensors without data that report a CUDA device: whatever reads a value fails."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ltfast.ops.core.cases import Sizes
from ops.every_op import EXAMPLES

SIZES = Sizes(rows=24, classes=7, width=16, dtype=torch.float32)


def on_gpu(name):
    with torch.device("cuda"):
        example = EXAMPLES[name](SIZES)
    return example.function, example.x, example.labels


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXAMPLES)
def test_replayed_calls_are_the_eager_ones(name):
    function, x, labels = on_gpu(name)
    x.requires_grad_()

    def step():
        loss = function(x, labels)
        return loss.detach(), *torch.autograd.grad(loss, x)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels compile, and cuBLAS allocates its workspace
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.rand_like(x) + 0.1)
            labels.random_(SIZES.classes)
        graph.replay()
        torch.testing.assert_close(captured, step())


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="needs PyTorch 2.11")
@pytest.mark.parametrize("name", EXAMPLES)
def test_no_forward_pass_reads_a_value(name):
    with FakeTensorMode(), torch.device("cuda"):
        function, x, labels = on_gpu(name)
        loss = function(x.requires_grad_(), labels)
    assert loss.device.type == "cuda"
    assert loss.shape == ()
