"""Long-tailed data: sources, subsampling to a long tail, samplers, augmentation and views.

This layer does not depend on methods, losses or models.
"""

from ltfast.data.bundle import DataBundle
from ltfast.data.check_images import check_images
from ltfast.data.datasets import (
    ArrayDataset,
    FileDataset,
    ImageDataset,
    ReaderDataset,
)
from ltfast.data.decode import ImageDecodeError, ImageNotFoundError
from ltfast.data.device_views import device_views
from ltfast.data.groups import class_groups, group_minima
from ltfast.data.held_out import load_test
from ltfast.data.image_sizes import fitting_size
from ltfast.data.long_tail import exponential_counts, long_tail_indices, pareto_counts, step_counts
from ltfast.data.patches import PatchViews
from ltfast.data.samplers import (
    ClassSampler,
    DualSampler,
    EpochSampler,
    InstanceSampler,
    class_balanced_probabilities,
    effective_number_probabilities,
    group_preferred_probabilities,
    make_sampler,
    square_root_probabilities,
)
from ltfast.data.sources import channel_statistics, load
from ltfast.data.transforms import eval_transform, train_transform
from ltfast.data.views import NumberedBatches, SeededViews

__all__ = [
    "ArrayDataset",
    "ClassSampler",
    "DataBundle",
    "DualSampler",
    "EpochSampler",
    "FileDataset",
    "ImageDataset",
    "ImageDecodeError",
    "ImageNotFoundError",
    "InstanceSampler",
    "NumberedBatches",
    "PatchViews",
    "ReaderDataset",
    "SeededViews",
    "channel_statistics",
    "check_images",
    "class_balanced_probabilities",
    "class_groups",
    "device_views",
    "effective_number_probabilities",
    "eval_transform",
    "exponential_counts",
    "fitting_size",
    "group_minima",
    "group_preferred_probabilities",
    "load",
    "load_test",
    "long_tail_indices",
    "make_sampler",
    "pareto_counts",
    "square_root_probabilities",
    "step_counts",
    "train_transform",
]
