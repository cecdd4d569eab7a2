"""Checks that timm's pretrained weights are available."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, try_to_load_from_cache

from ltfast.errors import InputError
from ltfast.network import hub_unreachable, reachable, seconds

_FILES = ("model.safetensors", "pytorch_model.bin")  # the files that timm requests from the Hub


def check_weights(backbone: str, config: Any) -> None:
    """Check within seconds that a model's weights are cached or can be downloaded: the libraries that download them
    retry for a minute. Cached weights need no network.

    Args:
        backbone: the model's name, for the message.
        config: timm's `PretrainedCfg` of the model.

    Raises:
        InputError: the weights are not available; the message says where to put the file.
    """
    if config.file or config.state_dict or not (config.hf_hub_id or config.url):
        return
    if config.hf_hub_id:
        why = hub_unreachable()
        repository, _, revision = config.hf_hub_id.partition("@")
        names = (config.hf_hub_filename,) if config.hf_hub_filename else _FILES
        cached = [try_to_load_from_cache(repository, name, revision=revision or None) for name in names]
        if why is None or any(isinstance(path, str) for path in cached):
            return
        folder = f"models--{repository.replace('/', '--')}"
        place = f"{Path(constants.HF_HUB_CACHE) / folder} (HF_HOME changes this folder)"
    else:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(config.url).path).name
        address = urlsplit(config.url)._replace(path="/", query="").geturl()
        if file.exists() or reachable(address):
            return
        why = f"{address} does not answer within {seconds():g} seconds"
        place = f"{file} (TORCH_HOME changes this folder)"
    raise InputError(
        f"the weights of {backbone} are not on this machine, and {why}. On a machine with network access, "
        f"timm.create_model({backbone!r}, pretrained=True) downloads them; copy them to {place}",
        name="pretrained",
    )
