"""The choice of the implementation of an op: the device decides, and ``backend`` or ``LTFAST_BACKEND`` override it.

``reference``  plain PyTorch, any device, differentiable any number of times
``native``     C++ on the CPU; for a few ops also CUDA C++ on a GPU
``triton``     Triton on a GPU, or on the CPU in Triton's interpreter (``TRITON_INTERPRET=1``)
"""

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

BACKENDS = ("reference", "native", "triton")

_native: ModuleType | None
_NO_NATIVE = "ltfast was installed without its C++ kernels (no compiler, or LTFAST_NATIVE=off)"
_NO_CUDA = "ltfast was installed without its CUDA kernels (no nvcc of CUDA 12.1 or later, or LTFAST_CUDA=off)"
try:
    from ltfast import _native  # type: ignore[no-redef]
except ImportError as error:
    _native = None
    if importlib.util.find_spec("ltfast._native") is not None:
        _NO_NATIVE = f"its C++ kernels do not load: {error}"

_NO_TRITON: str | None = None
if importlib.util.find_spec("triton") is None:
    _NO_TRITON = "the package triton is not installed"
elif tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
    # each version of PyTorch requires its own version of Triton, and 3.5 is the first with products of float64
    _NO_TRITON = f"its kernels need PyTorch 2.9 (Triton 3.5), this is PyTorch {torch.__version__}"
_VARIABLE = os.environ.get("LTFAST_BACKEND") or None
_thread = threading.local()  # (not a ContextVar, which torch.compile cannot trace)


class BackendUnavailableError(RuntimeError):
    """The requested backend cannot run here; the message says why."""


def native() -> ModuleType:
    """The compiled module ``ltfast._native``."""
    if _native is None:
        raise BackendUnavailableError(f"backend 'native' cannot run: {_NO_NATIVE}")
    return _native


def why_not(name: str, device: torch.device, *, in_cuda: bool = False) -> str | None:
    """The reason why a backend cannot run on a device, or None if it can.

    Args:
        in_cuda: whether the op has native kernels in CUDA C++ too.
    """
    if name not in BACKENDS:
        return f"there is no such backend: choose one of {', '.join(BACKENDS)}"
    if name == "native":
        if _native is None:
            return _NO_NATIVE
        if device.type == "cuda" and in_cuda:
            return None if _native.cuda else _NO_CUDA
        if device.type != "cpu":
            return f"its kernels run on the CPU, the tensor is on {device}"
    if name == "triton":
        if _NO_TRITON is not None:
            return _NO_TRITON
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "it needs a GPU tensor, or Triton's interpreter (TRITON_INTERPRET=1 before the first import)"
        if device.type not in ("cpu", "cuda"):
            return f"its kernels are for CUDA and ROCm devices, the tensor is on {device}"
    return None


def default_backend(device: torch.device) -> str:
    """The backend of a device without an override."""
    if device.type == "cuda" and _NO_TRITON is None:
        return "triton"
    if device.type == "cpu" and _native is not None:
        return "native"
    return "reference"


def resolve(device: torch.device, *, in_cuda: bool = False) -> str:
    """The backend on which an op that is called now on this device runs.

    Args:
        in_cuda: see ``why_not``.

    Raises:
        BackendUnavailableError: an override asks for a backend that cannot run on this device.
    """
    name = _override()
    if name is None:
        return default_backend(device)
    reason = why_not(name, device, in_cuda=in_cuda)
    if reason is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run: {reason}")
    return name


def _override() -> str | None:
    return getattr(_thread, "name", _VARIABLE)


def resolve_kernel(device: torch.device, *, in_cuda: bool = False) -> str:
    """Like ``resolve``, for a call from inside a custom op, which has kernels only.

    Raises:
        BackendUnavailableError: the choice is the reference, which is no kernel: ``ltfast.ops`` calls it directly.
    """
    name = resolve(device, in_cuda=in_cuda)
    if name == "reference":
        raise BackendUnavailableError(
            f"the op has no kernel for {device.type} here, and the reference runs through the functions of ltfast.ops, "
            "not through torch.ops.ltfast"
        )
    return name


def is_overridden() -> bool:
    """Whether ``backend`` or ``LTFAST_BACKEND`` overrides the choice."""
    return _override() is not None


def why_reference(device_type: str) -> str:
    """The reason why a device runs the reference without an override."""
    missing = {"cpu": _NO_NATIVE, "cuda": f"backend 'triton' cannot run: {_NO_TRITON}"}
    return missing.get(device_type, f"no kernels exist for {device_type}")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every ltfast op inside the block on one backend: ``with ltfast.backend("reference"): ...``.

    Applies to the calling thread, as ``torch.no_grad`` does, and takes precedence over ``LTFAST_BACKEND``. A backward
    pass runs on the backend of its forward pass, wherever it is called. Activation checkpointing calls the forward
    pass once more from there: ``checkpoint(..., context_fn=lambda: (nullcontext(), ltfast.backend(name)))``.

    Args:
        name: ``"reference"``, ``"native"`` or ``"triton"``.

    Raises:
        ValueError: no such backend. A backend that cannot run on an op's device raises
            ``BackendUnavailableError`` when the op is called.
    """
    if name not in BACKENDS:
        raise ValueError(f"name is {name!r}: expected one of {', '.join(map(repr, BACKENDS))}")
    before = _override()
    _thread.name = name
    try:
        yield
    finally:
        _thread.name = before


def choice(device: torch.device) -> str:
    """The name of the backend of a device now, or the reason why the override cannot run."""
    try:
        return resolve(device)
    except BackendUnavailableError as error:
        return str(error)


def describe() -> list[dict[str, str]]:
    """The available backends, a row for each: name, status ("available" or the reason why not), detail."""
    cuda = torch.cuda.is_available()
    rows = [{"name": "reference", "status": "available", "detail": f"PyTorch {torch.__version__}"}]
    reason = why_not("native", torch.device("cpu"))
    detail = ""
    if _native is not None:
        threads = f"{torch.get_num_threads()} threads" if _native.openmp else "1 thread (built without OpenMP)"
        detail = f"{_native.isa()} of {', '.join(_native.isas())}; {threads}"
        detail += "; CUDA " + (", ".join(f"sm_{architecture}" for architecture in _native.cuda) or "left out")
    rows.append({"name": "native", "status": reason or "available", "detail": detail})
    reason = why_not("triton", torch.device("cuda" if cuda else "cpu"))
    detail = ""
    if _NO_TRITON is None:
        import triton

        detail = f"Triton {triton.__version__}" + (f" on {torch.cuda.get_device_name()}" if cuda else "")
    rows.append({"name": "triton", "status": reason or "available", "detail": detail})
    return rows
