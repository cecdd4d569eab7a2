"""What timm lacks: CIFAR's ResNet-32, a net for 8 x 8 digits, the cosine classifier, the projection head.

Importing this package registers its networks with timm, so `timm.create_model("resnet32_cifar")` works.
"""

from ltfast.models.classifier import ImageClassifier, default_backbone
from ltfast.models.cosine_classifier import CosineClassifier
from ltfast.models.digits_convnet import DigitsConvNet
from ltfast.models.feature_map import feature_map
from ltfast.models.projection_head import ProjectionHead, TwoBranchClassifier
from ltfast.models.prompted_classifier import PromptedClassifier
from ltfast.models.prompts import PromptedTransformer, PromptPool
from ltfast.models.resnet_cifar import ResNetCifar
from ltfast.models.sub_models import SubModels

__all__ = [
    "CosineClassifier",
    "DigitsConvNet",
    "ImageClassifier",
    "ProjectionHead",
    "PromptPool",
    "PromptedClassifier",
    "PromptedTransformer",
    "ResNetCifar",
    "SubModels",
    "TwoBranchClassifier",
    "default_backbone",
    "feature_map",
]
