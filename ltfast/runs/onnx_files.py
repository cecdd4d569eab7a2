"""Programs as ONNX files, with the packages onnx, onnxscript and onnxruntime, which are optional."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ltfast.data.sources import PackageError
from ltfast.errors import InputError

OPSET = 18
_MOST_BYTES = 2**31 - 1  # of a file without external data


def check_packages() -> None:
    """Check that ONNX files can be written.

    Raises:
        PackageError: a package is missing.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise PackageError(
            f"a .onnx file needs the package {' and '.join(missing)} (pip install 'ltfast[onnx]'); .pt2 needs none",
            name="out",
        )


def onnx_bytes(
    program: ExportedProgram,
    *,
    inputs: Sequence[str],
    output: str,
    axes: Sequence[str],
    metadata: Mapping[str, str],
) -> bytes:
    """A program as an ONNX file of opset `OPSET`.

    Args:
        program: has one output.
        inputs, output: the names of its inputs and its output.
        axes: the names of the first axes of each input, for those whose size is not fixed.
        metadata: what the file says about the program, by name.

    Raises:
        PackageError: a package is missing.
        InputError: the file would be too large.
    """
    check_packages()
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, about itself
        converted: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(converted.model)  # it has the paths of source files of this machine
    converted.model.metadata_props.update(metadata)
    size = sum(value.const_value.nbytes for value in converted.model.graph.initializers.values())
    if size > _MOST_BYTES:
        raise InputError(f"the program has {size / 2**30:.1f} GiB, and an ONNX file at most 2; use .pt2", name="out")
    proto = converted.model_proto
    _name_axes(proto.graph, axes)
    content: bytes = proto.SerializeToString()
    return content


def _name_axes(graph: Any, axes: Sequence[str]) -> None:
    """Give the axes of the inputs names, in place of those that PyTorch has invented."""
    names = {
        axis.dim_param: name
        for value in graph.input
        for axis, name in zip(value.type.tensor_type.shape.dim, axes, strict=False)
        if axis.dim_param
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


def onnx_session(content: bytes) -> Callable[..., Tensor] | None:
    """An ONNX file as a function of tensors, on the CPU; None if onnxruntime is not installed."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run
