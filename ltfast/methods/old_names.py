"""Loads checkpoints in which tensors of a stage have the names of an earlier version."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def accept_old_names(stage: nn.Module, prefixes: Mapping[str, str | None]) -> None:
    """Let `stage.load_state_dict` take old names.

    Args:
        stage: gets a hook, which renames the tensors before they are loaded.
        prefixes: the new beginning of a name for each old one; None drops the tensors. The first that fits counts.
    """

    def rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            old = next((old for old in prefixes if name.startswith(prefix + old)), None)
            if old is not None:
                value, new = state.pop(name), prefixes[old]
                if new is not None:
                    state[prefix + new + name.removeprefix(prefix + old)] = value

    stage.register_load_state_dict_pre_hook(rename)
