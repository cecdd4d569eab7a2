"""Checks an ltfast that is installed without a compiler: version, C++ kernels, and losses that equal the reference.

    python -I .ci/check_wheel.py [--without-kernels]

A wheel for Windows has no C++ kernels. The environment needs torch and numpy.
"""

import argparse
import importlib.metadata
import shutil
import sys
from pathlib import Path

import torch

import ltfast
from ltfast.losses import AGCLLoss, BalancedBCELoss, ProCoLoss
from ltfast.ops.core import backends


def check_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(64, 100, generator=generator) * 2 - 1
    features = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator))
    labels = torch.randint(100, (64,), generator=generator)
    counts = list(range(100, 0, -1))
    proco = ProCoLoss(100, 32, class_counts=counts)
    proco.update(features, labels)
    for loss, inputs in ((BalancedBCELoss(counts), logits), (AGCLLoss(counts), logits), (proco, features)):
        loss.eval()  # without noise
        expected = None
        for name in ("reference", backends.default_backend(torch.device("cpu"))):
            leaf = inputs.clone().requires_grad_()
            with ltfast.backend(name):
                value = loss(leaf, labels)
                value.backward()
            expected = expected or (value.detach(), leaf.grad)
            torch.testing.assert_close((value.detach(), leaf.grad), expected, rtol=1e-5, atol=1e-6)
        print(f"{type(loss).__name__}: {value.item():.6f} on {name}, as the reference")


def openmp_runtimes() -> set[str]:
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libgomp" in line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-kernels", action="store_true")
    with_kernels = not parser.parse_args().without_kernels

    assert Path(sys.prefix) in Path(ltfast.__file__).parents, f"{ltfast.__file__} is not in {sys.prefix}"
    assert ltfast.__version__ == importlib.metadata.version("ltfast")
    row = next(row for row in backends.describe() if row["name"] == "native")
    assert (row["status"] == "available") == with_kernels, row
    print(f"ltfast {ltfast.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}; native: {row}")
    compilers = [name for name in ("c++", "g++", "cc", "gcc", "clang", "cmake", "ninja") if shutil.which(name)]
    print("compilers: " + (", ".join(compilers) or "none"))
    check_losses()
    if with_kernels and sys.platform == "linux":
        assert backends.native().openmp
        assert len(openmp_runtimes()) == 1, f"PyTorch and ltfast have different thread pools: {openmp_runtimes()}"


if __name__ == "__main__":
    main()
