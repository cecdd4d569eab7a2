"""Checkpoints: one file, replaced when the new one is whole."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltfast.engine.files import replace_file
from ltfast.engine.stage import Adapted, Plan
from ltfast.errors import InputError, InputNotFoundError

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"
_FORMAT = 2


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or is not this run's."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`: after a crash at any moment, the old one or the new one is there, whole.

    Raises:
        OSError: it cannot be written (the disk is full, say); the old one is as it was.
    """
    replace_file(path, lambda file: torch.save({"format": _FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Only tensors and plain values are unpickled, never code.

    Args:
        path: the file, or the run's folder.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is truncated, damaged, or no checkpoint of ltfast's.
    """
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.is_file():
        raise InputNotFoundError(f"checkpoint: there is no {path}")
    try:
        # torch's reader checks sizes but not contents: the archive's own checksums do
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"checkpoint {path} is damaged (checksum of {damaged}); delete it to start again")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and torch raise almost anything
        raise CheckpointError(
            f"checkpoint {path} is truncated, damaged or no checkpoint ({type(error).__name__}); "
            "delete it to start again"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"checkpoint {path} was not written by this version of ltfast")
    return state


def load_weights(path: Path, plan: Plan, state: Mapping[str, Tensor]) -> None:
    """Put a checkpoint's weights into a plan's stages; a backbone that it leaves out is recalled.

    Raises:
        CheckpointError: they are not this plan's.
    """
    modules = nn.ModuleList(plan.stages)
    left_out = set() if plan.adapted is None else plan.adapted.left_out(modules) - state.keys()
    if left_out and plan.adapted is not None:
        plan.adapted.recall()
        own = modules.state_dict()
        state = {**state, **{name: own[name] for name in left_out}}
    try:
        modules.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {path} does not fit this version's model: {error}") from error


def save_adapted(path: Path, adapted: Adapted) -> None:
    """Write what adapts the backbone, without it, to a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    left_out = adapted.left_out(adapted.network)
    state = {name: value.contiguous() for name, value in adapted.network.state_dict().items() if name not in left_out}
    replace_file(path, lambda file: file.write(save(state, {"format": "pt"})))


def check_settings(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to continue a run under other settings.

    Raises:
        CheckpointError: a setting differs; the message names each that does.
    """
    differ = [
        f"{name} was {saved.get(name)!r} and is now {current.get(name)!r}"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    ]
    if differ:
        raise CheckpointError(
            f"checkpoint {path} belongs to a run with other settings: {'; '.join(differ)}. "
            "Run with the settings it was started with, or choose another --out"
        )
