"""Loads weights that have timm's names into a backbone."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

_SHOWN = 3  # at most this many names of a kind in a message


def load_backbone(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load weights into a timm model, except its classifier.

    As for timm's own weights, position embeddings are resampled if the images have another size, and the first
    convolution is adapted if the weights are those of RGB images and the model takes greyscale images.

    Args:
        model: a model of timm's; its classifier, if it has one, is left unchanged.
        state: tensors by timm's names, with or without a classifier.

    Returns:
        The names in `state` that belong to a classifier, sorted.

    Raises:
        ValueError: a name is missing or unexpected, or a tensor has another shape; the message lists them.
    """
    own, config = model.state_dict(), getattr(model, "pretrained_cfg", None) or {}
    classifier = tuple(_prefix(name, own) for name in _names(config.get("classifier")))
    needed = [name for name in own if not name.startswith(classifier)]
    found = dict(state)
    if any(name not in found or found[name].shape != own[name].shape for name in needed):
        found = converted(model, found)
        for name in _names(config.get("first_conv")):
            weight, place = found.get(f"{name}.weight"), own.get(f"{name}.weight")
            if weight is not None and place is not None and weight.dim() == 4 and weight.shape[1] != place.shape[1]:
                found[f"{name}.weight"] = adapt_input_conv(place.shape[1], weight)
    # BatchNorm in old checkpoints has no counter
    missing = [name for name in needed if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in own and not name.startswith(classifier)]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(own[name].shape)}"
        for name in needed
        if name in found and found[name].shape != own[name].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(wrong.values()):
        raise ValueError("; ".join(f"{_some(names)} {what}" for what, names in wrong.items() if names))
    model.load_state_dict({**own, **{name: found[name] for name in needed if name in found}})
    return sorted(name for name in found if name.startswith(classifier))


def converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as timm converts them for the model: with its current names, and resampled to its image size."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), model))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many types, if the weights are those of another network
        raise ValueError(f"timm cannot convert them: {type(error).__name__}: {error}") from error


def _prefix(classifier: str, own: Mapping[str, Tensor]) -> str:
    """The prefix of a classifier's names. It is that of the layers around it (`head.bn` of `head.linear`) if the model
    has none of them."""
    around = f"{classifier.rpartition('.')[0]}."
    return f"{classifier}." if around == "." or any(name.startswith(around) for name in own) else around


def _names(value: Any) -> Sequence[str]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"
