"""Checkpoints: single files, each replaced only when the new one is complete."""

import copy
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os.path import lexists
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ltfast.engine.schema import (
    Mismatch,
    Schema,
    anything,
    boolean,
    integer,
    like,
    list_of,
    mapping,
    number,
    one_of,
    optional,
    plain,
    record,
    tensor,
    text,
)
from ltfast.engine.stage import Adapted, Plan
from ltfast.errors import InputError, InputNotFoundError
from ltfast.files import replace_file

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"
_FORMAT = 2


# the content of a checkpoint of any method; facts that a run does not use may be missing
_SCHEMA = record(
    {
        "settings": mapping(plain),
        "facts": record(
            {},
            {
                "source": text,
                "root": text,
                "class_names": list_of(text),
                "named": boolean,
                "class_counts": list_of(integer(1, 10**9)),
                "group_minima": list_of(integer(1), 2),
                "mean": list_of(number()),
                "std": list_of(number(above=0)),
                "image_size": integer(1, 2**16),
                "channels": integer(1, 2**8),
                "digests": mapping(text),
                "parts": record(
                    {},
                    {
                        "test": text,
                        "columns": mapping(text),
                        "validation": number(0, 1),
                        "test_fraction": number(0, 1),
                        "folds": integer(2),
                        "fold": integer(1),
                        "seed": integer(0),
                    },
                ),
            },
        ),
        "position": record({"stage": integer(0), "epoch": integer(0), "step": integer(0)}),
        "loss_sum": number(),
        "train_seconds": number(0),
        "model": mapping(tensor),
        "optimizer": optional(
            record({"state": mapping(mapping(anything), int), "param_groups": list_of(mapping(anything))})
        ),
        "scaler": optional(mapping(number(0))),
    },
    {
        "whole": boolean,
        "average": mapping(tensor),
        "selection": record(
            {
                "epochs": mapping(mapping(integer(1))),
                "best": optional(record({"epoch": integer(1), "value": number(0, 100)})),
                "weights": optional(mapping(tensor)),
            }
        ),
    },
)


class CheckpointError(InputError):
    """A checkpoint cannot be read, or belongs to another run."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`. After a crash at any moment, the old or the new checkpoint is there, complete.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. The old one is unchanged.
    """
    replace_file(path, lambda file: torch.save({"format": _FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Only tensors and plain values are unpickled, never code.

    Args:
        path: the file, or the run's folder.

    Raises:
        InputNotFoundError: there is no checkpoint.
        CheckpointError: the file is truncated, damaged or not a checkpoint of ltfast, a value in it does not have the
            form that ltfast writes, or a weight is not finite. The message names the place in the checkpoint.
    """
    if path.is_dir() and path.name != CHECKPOINT:
        path = path / CHECKPOINT
    if not lexists(path):
        raise InputNotFoundError(f"there is no {path}", name="checkpoint")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file: it is a broken link, a folder or a device")
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
    if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] != _FORMAT:
        raise CheckpointError(f"checkpoint {path} was not written by this version of ltfast")
    check_content(path, _SCHEMA, state)
    return state


def load_description(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the settings and the facts of a checkpoint without its weights. For the argument and errors see
    `load_checkpoint`."""
    file = path / CHECKPOINT if path.is_dir() else path
    if file.is_file():
        with suppress(Exception):  # `load_checkpoint` reports what is wrong
            saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            described = dict(saved["settings"]), dict(saved["facts"])
            list_of(mapping(plain))(described, "")
            return described
    saved = load_checkpoint(path)
    return dict(saved["settings"]), dict(saved["facts"])


def check_content(path: Path, schema: Schema, content: Any, place: str = "") -> None:
    """Check the value at a place in a checkpoint.

    Raises:
        CheckpointError: the value does not match the schema.
    """
    try:
        schema(content, place)
    except Mismatch as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error


def check_position(path: Path, position: Mapping[str, int], plan: Plan, steps: Sequence[int] | None = None) -> None:
    """Check that a plan has a position.

    Args:
        path: the checkpoint.
        position: its stage, epoch and step.
        plan: the run's plan.
        steps: optimiser steps per epoch of each stage; None skips the check of the step.

    Raises:
        CheckpointError: the plan does not have the position.
    """
    stage = position["stage"]
    check_content(path, integer(0, len(plan.stages)), stage, "position.stage")
    finished = stage == len(plan.stages)
    epochs = 1 if finished else plan.stages[stage].optimisation.epochs
    check_content(path, integer(0, epochs - 1), position["epoch"], "position.epoch")
    if finished or steps is not None:
        last = 0 if finished or steps is None else steps[stage] - 1
        check_content(path, integer(0, last), position["step"], "position.step")


def load_weights(path: Path, plan: Plan, state: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's weights into a plan's stages. A backbone that the checkpoint leaves out is recalled.

    Raises:
        CheckpointError: the weights do not fit the plan.
    """
    modules = nn.ModuleList(plan.stages)
    left_out = set() if plan.adapted is None else plan.adapted.left_out(modules) - state.keys()
    if left_out and plan.adapted is not None:
        plan.adapted.recall()
        whole = modules.state_dict()
        state = {**state, **{name: whole[name] for name in left_out}}
    own = {
        **dict(modules.named_parameters(remove_duplicate=False)),
        **dict(modules.named_buffers(remove_duplicate=False)),
    }
    for name, value in state.items():
        if name in own and own[name].dtype != value.dtype:
            raise CheckpointError(f"checkpoint {path}: model.{name}: expected {own[name].dtype}, got {value.dtype}")
    try:
        modules.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {path} does not fit this version's model: {error}") from error


def load_optimizer(path: Path, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a checkpoint's state into an optimiser that has not made a step.

    Raises:
        CheckpointError: the state does not belong to this optimiser and these parameters.
    """
    # one step of a copy shows the form of the state, which optimisers do not declare
    example = copy.deepcopy(optimizer)
    for group in example.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    example.step()
    expected = example.state_dict()
    groups = []
    check_content(path, list_of(anything, len(optimizer.param_groups)), state["param_groups"], "optimizer.param_groups")
    for i, (own, saved) in enumerate(zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True)):
        place = f"optimizer.param_groups[{i}]"
        check_content(path, record({"params": list_of(integer(0))}), saved, place)
        check_content(path, one_of([own["params"]]), list(saved["params"]), f"{place}.params")
        # numbers may change from step to step; the other options follow from the settings, which are equal
        numbers = {name: value for name, value in own.items() if type(value) in (int, float) and name in saved}
        check_content(path, like(numbers), saved, place)
        groups.append({**own, **{name: saved[name] for name in numbers}})
    for index, values in state["state"].items():
        check_content(path, one_of(expected["state"]), index, "optimizer.state")
        if values:  # empty if the parameter never had a gradient
            check_content(path, like(expected["state"][index]), values, f"optimizer.state.{index}")
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def save_adapted(path: Path, adapted: Adapted) -> None:
    """Write the weights of a network without its backbone to a safetensors file.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    left_out = adapted.left_out(adapted.network)
    state = {name: value.contiguous() for name, value in adapted.network.state_dict().items() if name not in left_out}
    replace_file(path, lambda file: file.write(save(state, {"format": "pt"})))
