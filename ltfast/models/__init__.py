"""What timm lacks: CIFAR's ResNet-32, nets for small images, the cosine classifier, the projection head, the masked
autoencoder.

Importing this package registers its networks with timm, so `timm.create_model("resnet32_cifar")` works.
"""

from ltfast.models.class_parallel_classifier import ClassParallelCosineClassifier
from ltfast.models.classifier import ImageClassifier, default_backbone, make_backbone
from ltfast.models.cosine_classifier import CosineClassifier
from ltfast.models.digits_convnet import DigitsConvNet
from ltfast.models.feature_map import feature_map
from ltfast.models.masked_autoencoder import MaskedAutoencoder
from ltfast.models.projection_head import ProjectionHead, TwoBranchClassifier
from ltfast.models.prompted_classifier import PromptedClassifier
from ltfast.models.prompts import PromptedTransformer, PromptPool
from ltfast.models.resnet_cifar import ResNetCifar
from ltfast.models.small_vit import default_vit
from ltfast.models.sub_models import SubModels

__all__ = [
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
    "TwoBranchClassifier",
    "default_backbone",
    "default_vit",
    "feature_map",
    "make_backbone",
]
