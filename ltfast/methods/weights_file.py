"""Reads weights from a file (`--weights`)."""

from pathlib import Path

from torch import Tensor

from ltfast.data.files import check_file
from ltfast.engine import schema
from ltfast.errors import InputError


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights in a file. Only tensors and plain values are unpickled, never code.

    Args:
        path: a `.safetensors` file, or one that `torch.save` has written: tensors by name, alone or as
            `state_dict_ema`, `model_ema`, `state_dict` or `model` (the first of these that there is), with or without
            the prefixes of `DistributedDataParallel` and `torch.compile`.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file cannot be read, or has something else; the message names it.
    """
    from timm.models import load_state_dict

    path = path.expanduser()
    check_file("weights", path)
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # a damaged file makes torch and safetensors raise almost anything
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise InputError(
            "expected a .safetensors file, or the state_dict of a model that torch.save has written (pickled objects "
            f"are not read, since they can run code), got {path}: {reason}",
            name="weights",
        ) from error
    try:
        schema.mapping(schema.tensor)(state, "")
    except schema.Mismatch as error:
        raise InputError(f"expected tensors by name in {path}: {error}", name="weights") from error
    return state
