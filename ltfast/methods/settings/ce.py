"""The options of `--method ce`."""

from dataclasses import dataclass
from typing import Literal

from ltfast.engine import option
from ltfast.methods.settings.backbone import BackboneSettings


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
    """Options of `--method ce`.

    Raises:
        ValueError: a setting is out of its range.
    """

    loss: Literal["cross_entropy", "logit_adjusted", "agcl", "balanced_bce", "ldam"] = option(
        "cross_entropy", "training loss; agcl and ldam bring a cosine classifier, the others a linear one"
    )
    sampler: Literal["instance", "class_balanced", "square_root", "effective_number"] = option(
        "instance", "which images an epoch draws: each once, or by class"
    )
    augment: Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "randaugment"] = option(
        "basic", "augmentation of training images; basic is a shifted crop, cifar flips too"
    )
