"""Encoders from LiVT's first stage, for another run or method."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ltfast.engine.checkpoint import CheckpointError, load_checkpoint
from ltfast.errors import InputError, InputNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from timm.models.vision_transformer import VisionTransformer

PRETRAINED = "0.autoencoder.encoder."  # the encoder before fine-tuning, in the checkpoint of a LiVT run


def pretrained_encoder(checkpoint: "Path") -> dict[str, Tensor]:
    """The weights of the encoder that a LiVT run has pre-trained, under timm's names.

    Args:
        checkpoint: the file, or the run's folder.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the checkpoint cannot be read or belongs to another method, or its pre-training is not finished or
            was left out.
    """
    try:
        saved = load_checkpoint(checkpoint.expanduser())
    except FileNotFoundError as error:
        raise InputNotFoundError(
            f"expected a run's folder or checkpoint, got {str(checkpoint)!r}", name="init"
        ) from error
    except CheckpointError as error:
        # "delete it" is advice for training only
        raise InputError(str(error).partition("; delete it")[0], name="init") from error
    method = saved["settings"].get("method")
    weights = {
        name.removeprefix(PRETRAINED): value for name, value in saved["model"].items() if name.startswith(PRETRAINED)
    }
    if method != "livt" or not weights:
        found = "one without pre-training" if method == "livt" else f"one of method {method!r}"
        raise InputError(f"expected a run of method 'livt' with pre-training, got {found} in {checkpoint}", name="init")
    if saved["position"]["stage"] == 0:
        done = saved["position"]["epoch"]
        raise InputError(f"expected a finished pre-training, got one after {done} epochs in {checkpoint}", name="init")
    return weights


def load_encoder(model: "VisionTransformer", weights: Mapping[str, Tensor]) -> None:
    """Load an encoder's weights into a vision transformer, except its head. The position embedding is resampled if the
    images have another size.

    Raises:
        ValueError: the weights belong to another network.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        keys = model.load_state_dict(checkpoint_filter_fn(dict(weights), model), strict=False)
        wrong = [*keys.unexpected_keys, *(name for name in keys.missing_keys if not name.startswith("head."))]
    except (RuntimeError, ValueError, IndexError) as error:  # the message has a line for each size that differs
        wrong = str(error).splitlines()[1:] or [str(error)]
    if wrong:
        raise InputError(f"the encoder belongs to another backbone: {wrong[0].strip()}", name="init")
