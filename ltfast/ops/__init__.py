"""The hot paths: tensors in, tensors out. One folder an op: the definition in ``reference.py``, kernels beside it."""

from ltfast.ops.agcl import agcl
from ltfast.ops.balanced_bce import balanced_bce

__all__ = ["agcl", "balanced_bce"]
