"""One file an op, or a few that belong together: its cases, and how it grows.

The files are imported when cases are asked for: PyTorch takes seconds to import, and `--help` needs only the names.
"""

from types import ModuleType

SHAPES = ("small", "imagenet-lt", "inat18", "large", "million")

OPS = {
    "agcl": "agcl",
    "balanced_bce": "balanced_bce",
    "proco": "vmf",
    "vmf_cross_entropy": "vmf",
    "log_iv": "bessel",
    "bessel_ratio": "bessel",
    "class_sums": "class_sums",
    "queue_softmax": "queue_softmax",
    "dscl": "queue_softmax",
    "supcon": "queue_softmax",
    "pbsd": "queue_softmax",
    "patch_roi_pool": "roi_pool",
    "taylor_importance_": "taylor",
    "importance_threshold": "taylor",
    "apply_masks_": "taylor",
    "aggregation": "models",
    "prompts": "models",
    "masked_autoencoder": "models",
}
"""The names of `--ops`, each with its file."""


def file_of(op: str) -> ModuleType:
    """The module with the cases of an op, and of others."""
    from ltfast.benchmark.cases import (
        agcl,
        balanced_bce,
        bessel,
        class_sums,
        models,
        queue_softmax,
        roi_pool,
        taylor,
        vmf,
    )

    files = (agcl, balanced_bce, bessel, class_sums, models, queue_softmax, roi_pool, taylor, vmf)
    return {file.__name__.rpartition(".")[2]: file for file in files}[OPS[op]]
