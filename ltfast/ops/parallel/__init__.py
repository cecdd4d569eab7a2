r"""Losses of a classifier whose classes are split over the processes of ``torch.distributed``, for more classes than
one device holds (split as by An et al., "Partial FC: Training 10 Million Identities on a Single Machine", ICCVW 2021).

Process r holds the classes ``ltfast.ops.core.collectives.class_ranges(num_classes)[r]`` and the rows of all processes,
the joined batch. For each row it computes the contribution of its classes, a few numbers. These are sent to the process
that owns the row, which combines them:

.. math::

    \mathrm{lse} = \log \sum_r e^{\mathrm{lse}_r}, \qquad
    \sum_c p_c^\gamma \log p_c = \sum_r e^{\gamma \delta_r} (S_r + \delta_r E_r), \quad \delta_r = m_r - \mathrm{lse}

with :math:`m_r` the largest of its logits, :math:`E_r = \sum_c e^{\gamma (v_c - m_r)}` and
:math:`S_r = \sum_c (v_c - m_r) e^{\gamma (v_c - m_r)}`. The gradients of these numbers are sent back.

The loss of each process is that of its own rows, as usual under ``DistributedDataParallel``: the mean of the processes'
losses is the loss of the joined batch (for "sum", their sum is; for "mean", if they ignore equally many labels).
Averaged over the processes, the gradients of shared parameters are those of the joined batch. All
processes must call the function, with batches of the same size.
"""

from ltfast.ops.parallel.agcl import class_parallel_agcl
from ltfast.ops.parallel.linear import class_parallel_linear_balanced_bce, class_parallel_linear_cross_entropy
from ltfast.ops.parallel.linear_agcl import class_parallel_linear_agcl
from ltfast.ops.parallel.vmf import class_parallel_vmf_cross_entropy

__all__ = [
    "class_parallel_agcl",
    "class_parallel_linear_agcl",
    "class_parallel_linear_balanced_bce",
    "class_parallel_linear_cross_entropy",
    "class_parallel_vmf_cross_entropy",
]
