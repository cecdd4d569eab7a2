"""One file an op, or a few that belong together: its cases, and how it grows."""

from types import ModuleType

from ltfast.benchmark.cases import agcl, balanced_bce, bessel, class_sums, models, queue_softmax, roi_pool, taylor, vmf

OPS: dict[str, ModuleType] = {
    "agcl": agcl,
    "balanced_bce": balanced_bce,
    "proco": vmf,
    "vmf_cross_entropy": vmf,
    "log_iv": bessel,
    "bessel_ratio": bessel,
    "class_sums": class_sums,
    "queue_softmax": queue_softmax,
    "dscl": queue_softmax,
    "supcon": queue_softmax,
    "pbsd": queue_softmax,
    "patch_roi_pool": roi_pool,
    "taylor_importance_": taylor,
    "importance_threshold": taylor,
    "apply_masks_": taylor,
    "aggregation": models,
    "prompts": models,
    "masked_autoencoder": models,
}
