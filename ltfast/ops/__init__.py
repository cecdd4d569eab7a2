"""The hot paths: tensors in, tensors out. One folder an op: the definition in ``reference.py``, kernels beside it."""

from ltfast.ops.agcl import agcl
from ltfast.ops.balanced_bce import balanced_bce
from ltfast.ops.bessel import bessel_ratio, log_iv
from ltfast.ops.class_sums import class_sums
from ltfast.ops.cross_entropy import cross_entropy
from ltfast.ops.linear import linear_agcl, linear_balanced_bce, linear_cross_entropy
from ltfast.ops.parallel import (
    class_parallel_agcl,
    class_parallel_linear_agcl,
    class_parallel_linear_balanced_bce,
    class_parallel_linear_cross_entropy,
    class_parallel_vmf_cross_entropy,
)
from ltfast.ops.queue_softmax import queue_softmax
from ltfast.ops.roi_pool import patch_roi_pool
from ltfast.ops.taylor import apply_masks_, importance_threshold, taylor_importance_
from ltfast.ops.vmf import vmf_cross_entropy, vmf_logits

__all__ = [
    "agcl",
    "apply_masks_",
    "balanced_bce",
    "bessel_ratio",
    "class_parallel_agcl",
    "class_parallel_linear_agcl",
    "class_parallel_linear_balanced_bce",
    "class_parallel_linear_cross_entropy",
    "class_parallel_vmf_cross_entropy",
    "class_sums",
    "cross_entropy",
    "importance_threshold",
    "linear_agcl",
    "linear_balanced_bce",
    "linear_cross_entropy",
    "log_iv",
    "patch_roi_pool",
    "queue_softmax",
    "taylor_importance_",
    "vmf_cross_entropy",
    "vmf_logits",
]
