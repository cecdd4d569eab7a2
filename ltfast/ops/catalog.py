"""The list of ops: the cases of each folder. Tests and the benchmark iterate over it."""

from ltfast.ops.agcl.cases import CASES as AGCL
from ltfast.ops.balanced_bce.cases import CASES as BALANCED_BCE
from ltfast.ops.bessel.cases import CASES as BESSEL
from ltfast.ops.class_sums.cases import CASES as CLASS_SUMS
from ltfast.ops.core.scale_rows.cases import CASES as SCALE_ROWS
from ltfast.ops.cross_entropy.cases import CASES as CROSS_ENTROPY
from ltfast.ops.linear.cases import CASES as LINEAR
from ltfast.ops.noise.cases import CASES as NOISE
from ltfast.ops.parallel.cases import CASES as PARALLEL
from ltfast.ops.queue_softmax.cases import CASES as QUEUE_SOFTMAX
from ltfast.ops.roi_pool.cases import CASES as ROI_POOL
from ltfast.ops.taylor.cases import CASES as TAYLOR
from ltfast.ops.vmf.cases import CASES as VMF

OPS = (
    AGCL,
    BALANCED_BCE,
    CROSS_ENTROPY,
    VMF,
    BESSEL,
    CLASS_SUMS,
    QUEUE_SOFTMAX,
    ROI_POOL,
    TAYLOR,
    LINEAR,
    PARALLEL,
    SCALE_ROWS,
    NOISE,
)
