"""Triton's interpreter with the arguments of a launch on a GPU.

The interpreter passes Python floats on as they are, and its arithmetic takes them for float32. A launch gives a float
argument the type of its annotation, and float32 without one. With ``type_float_arguments`` the interpreter does so too:
a missing annotation costs the same precision in both, and an annotated argument costs none.
"""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

_run = InterpretedFunction.run


def type_float_arguments() -> None:
    InterpretedFunction.run = _run_typed


def _run_typed(self, *args, grid, warmup, **kwargs):
    annotations = self.fn.__annotations__
    arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
    typed = {name: _typed(value, annotations.get(name, "fp32")) for name, value in arguments.items()}
    return _run(self, grid=grid, warmup=warmup, **typed)


def _typed(value, annotation):
    if not isinstance(value, float) or annotation not in ("fp32", "fp64"):
        return value
    dtype, numbers = (tl.float64, np.float64) if annotation == "fp64" else (tl.float32, np.float32)
    return tl.tensor(TensorHandle(np.array([value], dtype=numbers), dtype), dtype)
