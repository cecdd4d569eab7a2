"""The projection from the features of an image to the embedding that it shares with texts, in CLIP and its kin."""

from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor

from ltfast.models.load_backbone import converted


def text_projection(backbone: str, state: Mapping[str, Tensor] | None = None) -> Tensor | None:
    """The weight of the projection after a timm model's features, which timm keeps in its classifier.

    Args:
        backbone: timm's name of the model.
        state: weights of the model by timm's or the authors' names; None means those that timm has pretrained.

    Returns:
        (E, D) for features of width D and embeddings of width E; None if the weights have no such matrix. A classifier
        with a bias is that of a data set.
    """
    model: Any = timm.create_model(backbone, pretrained=state is None)
    classifier = model.pretrained_cfg.get("classifier")
    found = model.state_dict() if state is None else dict(state)
    if state is not None and f"{classifier}.weight" not in found:
        found = converted(model, found)
    weight, bias = (found.get(f"{classifier}.{name}") for name in ("weight", "bias"))
    if weight is None or weight.shape[1:] != (model.num_features,) or (bias is not None and bias.any()):
        return None
    return weight
