"""Triton's interpreter, with the arguments of a launch on a GPU, and without work that it repeats.

The interpreter passes Python floats on as they are, and its arithmetic takes them for float32. A launch gives a float
argument the type of its annotation, and float32 without one. With ``type_float_arguments`` the interpreter does so too:
a missing annotation costs the same precision in both, and an annotated argument costs none.

The interpreter replaces the functions of ``triton.language`` at each launch, and again at each call of a jitted
function within a kernel. That is most of a kernel's time, and the second time changes nothing. With ``patch_once`` a
launch replaces them once for each module of jitted functions.
"""

from functools import cache

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

_run = InterpretedFunction.run
_patch_lang = interpreter._patch_lang
_scalar_np_dtype = cache(interpreter._get_np_dtype)
_patched: set[str] = set()  # the modules of this launch


def type_float_arguments() -> None:
    InterpretedFunction.run = _run_typed


def patch_once() -> None:
    interpreter._patch_lang = _patch_lang_once
    interpreter._get_np_dtype = _np_dtype


def _run_typed(self, *args, grid, warmup, **kwargs):
    annotations = self.fn.__annotations__
    arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
    typed = {name: _typed(value, annotations.get(name, "fp32")) for name, value in arguments.items()}
    _patched.clear()
    return _run(self, grid=grid, warmup=warmup, **typed)


def _typed(value, annotation):
    if not isinstance(value, float) or annotation not in ("fp32", "fp64"):
        return value
    dtype, numbers = (tl.float64, np.float64) if annotation == "fp64" else (tl.float32, np.float32)
    return tl.tensor(TensorHandle(np.array([value], dtype=numbers), dtype), dtype)


def _patch_lang_once(function):
    if function.__module__ in _patched:
        return None
    _patched.add(function.__module__)
    return _patch_lang(function)


def _np_dtype(dtype):
    """The interpreter's own makes a table of all types at each call."""
    scalar = dtype.scalar
    return np.dtype(np.uint64) if scalar.is_ptr() else _scalar_np_dtype(scalar)
