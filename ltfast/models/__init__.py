"""Networks and heads that timm lacks: ResNet-32 for CIFAR, networks for small images, the cosine classifier, the
projection head, the masked autoencoder, prompts and adapters.

Importing this package registers its networks with timm, so `timm.create_model("resnet32_cifar")` works. The heads
(`CosineClassifier`, `ClassParallelCosineClassifier`, `ProjectionHead`), `SubModels` and `feature_map` need only
PyTorch. The others need timm, which `pip install 'ltfast[train]'` installs.
"""

from typing import Any

from ltfast.models.class_parallel_classifier import ClassParallelCosineClassifier
from ltfast.models.cosine_classifier import CosineClassifier
from ltfast.models.feature_map import feature_map
from ltfast.models.projection_head import ProjectionHead
from ltfast.models.sub_models import SubModels

try:
    from ltfast.models.adapted_classifier import AdaptedClassifier
    from ltfast.models.adapted_transformer import AdaptedTransformer
    from ltfast.models.classifier import ImageClassifier, default_backbone, make_backbone
    from ltfast.models.digits_convnet import DigitsConvNet
    from ltfast.models.masked_autoencoder import MaskedAutoencoder
    from ltfast.models.prompted_classifier import PromptedClassifier
    from ltfast.models.prompts import PromptedTransformer, PromptPool
    from ltfast.models.resnet_cifar import ResNetCifar
    from ltfast.models.small_vit import default_vit
except ModuleNotFoundError as error:
    missing = error.name or ""
    if missing.startswith("ltfast"):
        raise

    def __getattr__(name: str) -> Any:
        if name in __all__:
            raise ModuleNotFoundError(
                f"ltfast.models.{name} needs the package {missing}: pip install 'ltfast[train]'",
                name=missing,
            )
        raise AttributeError(f"module 'ltfast.models' has no attribute {name!r}")


__all__ = [
    "AdaptedClassifier",
    "AdaptedTransformer",
    "ClassParallelCosineClassifier",
    "CosineClassifier",
    "DigitsConvNet",
    "ImageClassifier",
    "MaskedAutoencoder",
    "ProjectionHead",
    "PromptPool",
    "PromptedClassifier",
    "PromptedTransformer",
    "ResNetCifar",
    "SubModels",
    "default_backbone",
    "default_vit",
    "feature_map",
    "make_backbone",
]
