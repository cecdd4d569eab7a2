"""Counts what a step of each op launches on a GPU that is not here and prints it, a JSON object a line.

python count_launches.py NAME...

A step is the loss of 256 x 1000 inputs and its gradient. The tensors are fake. Triton's kernels are compiled and not
run; their machine code is looked at too. Each operator of PyTorch counts as one launch, but for those that only make a
tensor or a view.
"""

import json
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from ltfast.ops import agcl, balanced_bce, cross_entropy, vmf_cross_entropy
from ltfast.ops.core import dispatch, fused_loss, scale_rows
from ltfast.ops.core.cases import labels_on_gpu, on_gpu
from ltfast.ops.noise import seed
from stand_in_driver import Launch, launches_on

ROWS, CLASSES, WIDTH = 256, 1000, 128
LAUNCHES_NOTHING = re.compile(r"prim\.|aten\.((new_)?empty(_like|_strided)?|detach|lift_fresh)\b")


class Operators(TorchDispatchMode):
    """Lists PyTorch's operators that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        on_cpu = any(isinstance(x, Tensor) and x.device.type == "cpu" for x in args)
        if not on_cpu and not function.is_view and not LAUNCHES_NOTHING.match(str(function)):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def loss_of_balanced_bce() -> Callable[[], Tensor]:
    logits, target, bias = on_gpu(ROWS, CLASSES).requires_grad_(), labels_on_gpu(ROWS), on_gpu(CLASSES)
    return lambda: balanced_bce(logits, target, bias)


def loss_of_cross_entropy() -> Callable[[], Tensor]:
    logits, target, bias = on_gpu(ROWS, CLASSES).requires_grad_(), labels_on_gpu(ROWS), on_gpu(CLASSES)
    return lambda: cross_entropy(logits, target, bias)


def loss_of_agcl() -> Callable[[], Tensor]:
    logits, target, noise = on_gpu(ROWS, CLASSES).requires_grad_(), labels_on_gpu(ROWS), on_gpu(CLASSES)
    return lambda: agcl(logits, target, noise)


def loss_of_vmf_cross_entropy() -> Callable[[], Tensor]:
    features, target = on_gpu(ROWS, WIDTH).requires_grad_(), labels_on_gpu(ROWS)
    directions, kappa, log_prior = on_gpu(CLASSES, WIDTH), on_gpu(CLASSES), on_gpu(CLASSES)
    return lambda: vmf_cross_entropy(features, target, directions, kappa, log_prior=log_prior)


LOSSES: dict[str, Callable[[], Callable[[], Tensor]]] = {
    "balanced_bce": loss_of_balanced_bce,
    "agcl": loss_of_agcl,
    "cross_entropy": loss_of_cross_entropy,
    "vmf_cross_entropy": loss_of_vmf_cross_entropy,
}


def backward(loss: Tensor) -> None:
    """What autograd does. (Its engine asks the driver for the GPU.)"""
    filled = torch.ones_like(loss)
    with torch.no_grad():
        loss.grad_fn.apply(filled, None)


def orders_its_sum(started: Launch) -> bool:
    """Whether the thread that stores a program's losses is the one that announces them, with release and acquire."""
    ptx = started.compiled.asm["ptx"]
    atomic = re.search(r"@(%p\d+) atom\.global\.gpu\.acq_rel\.add\.u32", ptx)
    stores = re.findall(r"@(%p\d+) st\.global\.\w+", ptx[: atomic.start()]) if atomic else []
    # what sets a predicate: two registers may hold the same
    origin = dict(re.findall(r"(?:pred|setp\.\w+\.\w+)\s+(%p\d+), ([^;]+);", ptx))
    return bool(atomic) and origin[atomic[1]] in (origin.get(store) for store in stores)


def moves_16_bytes(started: Launch) -> bool:
    """Whether the kernel loads and stores 16 bytes at once."""
    return all(f"{way}.global.v4.b32" in started.compiled.asm["ptx"] for way in ("ld", "st"))


def main(name: str) -> None:
    generator = mock.Mock(**{"get_offset.return_value": 0, "initial_seed.return_value": 0})
    with (
        launches_on(GPUTarget("cuda", 90, 32)) as launches,
        # fake tensors take the way of the plain ones that they stand for
        mock.patch.object(fused_loss, "is_plain", return_value=True),
        mock.patch.object(fused_loss, "keeps_graph", return_value=False),
        mock.patch.object(dispatch, "kernel_context", return_value=nullcontext()),
        mock.patch.object(fused_loss, "kernel_context", return_value=nullcontext()),
        mock.patch.object(scale_rows, "kernel_context", return_value=nullcontext()),
        mock.patch.object(seed, "is_watched", return_value=False),
        mock.patch.object(torch.cuda, "default_generators", [generator]),
        FakeTensorMode(),
        Operators() as operators,
    ):
        loss = LOSSES[name]()
        backward(loss())  # makes what lasts
        launches.clear()
        operators.names.clear()
        backward(loss())
    kernels = [started.kernel.__name__ for started in launches]
    facts = {"ordered": orders_its_sum(launches[0]), "wide": [moves_16_bytes(started) for started in launches]}
    print(json.dumps({"kernels": kernels, "operators": operators.names, **facts}))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(name)
