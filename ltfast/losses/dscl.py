import torch
from torch import Tensor, nn

from ltfast import ops
from ltfast.losses.memory_queue import MemoryQueue
from ltfast.losses.watch import ENOUGH_KEYS, Watch
from ltfast.ops.core.checks import check_labels, check_matrix, check_number, check_positive
from ltfast.ops.core.collectives import gather, rank


class SupConQueueLoss(nn.Module):
    r"""Supervised contrastive loss with a memory queue, on L2-normalised features (Khosla et al., NeurIPS 2020, with
    MoCo's queue).

    .. math::

        L_i = \mathrm{lse}_i - \frac{1}{1 + |P_i|} \sum_{t \in P_i \cup \{i^+\}} q_i \cdot k_t / \tau

    The positives are the anchor's own key :math:`i^+` and the set :math:`P_i` of all other queries, keys and queued
    keys of its class. The log-sum-exp runs over all other queries, all keys and the queue. The sum over the positives
    is computed from class sums, so labels are not compared with the queue.

    Args:
        temperature: tau, over 0.

    Under ``torch.distributed``, each anchor is compared with the queries and keys of all processes. The mean of the
    processes' losses and its gradients then equal those of the global batch.

    Queries, keys or queued keys that are not L2-normalised cause a warning, once per loss object. They are checked on
    some calls on a CPU, and on a GPU only with ``LTFAST_CHECKS=1``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.watch = Watch()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        labels: Tensor,
        queue: MemoryQueue,
        attended: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Compute the mean loss over the batch. The queue is not changed: enqueue the keys afterwards.

        Args:
            query: (B, D), any float dtype: the anchors, L2-normalised.
            key: (B, D): features of another view of each anchor, L2-normalised and without gradient; usually from a
                momentum encoder.
            labels: (B,), integers of 0 or more.
            queue: a queue of keys of width D; it may be empty.
            attended: the result of ``queue.attend`` for the queries, if it is already computed.

        Returns:
            A scalar, float32 (float64 for float64).

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        check_pair(query, key, "key", queue)
        check_labels(labels, query, "labels", classes=queue.num_classes or 2**62)
        if self.watch.due(query):
            self.watch.lengths(type(self).__name__, query=query, key=key, queue=queue.keys[:ENOUGH_KEYS])
        (from_queue,) = queue.attend(query, temperature=self.temperature) if attended is None else (attended,)
        queries, keys, all_labels = gather(query), gather(key), gather(labels.long())
        both = torch.cat([queries, keys])  # different dtypes are promoted
        itself = torch.arange(len(query), device=query.device) + rank() * len(query)
        lse, _ = ops.queue_softmax(query.to(both.dtype), both, temperature=self.temperature, exclude=itself)
        # Relabel the classes by rank among the batch's labels: there are then at most as many classes as samples.
        order = all_labels.argsort()
        changes = all_labels[order].diff(prepend=all_labels[order[:1]]) != 0
        classes = torch.empty_like(order).scatter_(0, order, changes.cumsum(0))
        sums, counts = ops.class_sums(both, classes.repeat(2), len(queries))
        own = classes[itself]
        queued_sums, queued_counts = queue.of_class(labels.long())
        positives = sums[own] - query - key + queued_sums.to(sums.dtype)
        number = counts[own] - 2 + queued_counts
        lse = torch.logaddexp(lse, from_queue[0])
        return self.from_sums(query, key, lse, positives, number).mean()

    def from_sums(self, query: Tensor, key: Tensor, lse: Tensor, positives: Tensor, number: Tensor) -> Tensor:
        """The loss of each anchor, (B,), from the sum (B, D) and number (B,) of its positives without its own key."""
        of_key, of_other = self.weights(number.to(lse.dtype))
        query = query.to(lse.dtype)
        likeness = of_key * (query * key).sum(1) + of_other * (query * positives).sum(1)
        return lse - likeness / self.temperature

    def weights(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """The weights (B,) of each anchor's own key and of each of its ``number`` (B,) other positives."""
        equal = 1 / (1 + number)
        return equal, equal

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DSCLLoss(SupConQueueLoss):
    r"""Decoupled supervised contrastive loss on L2-normalised features (Xuan and Zhang, "Decoupled Contrastive Learning
    for Long-Tailed Recognition", AAAI 2024). The weight of the anchor's own key does not depend on the number of
    positives in its class.

    .. math::

        L_i = \mathrm{lse}_i - \frac{1}{\tau (1 + \beta)}
        \Big[ q_i \cdot k_{i^+} + \frac{\beta}{|P_i|} \sum_{t \in P_i} q_i \cdot k_t \Big]

    All symbols are as in ``SupConQueueLoss``; the paper's alpha is :math:`1 / (1 + \beta)`. An anchor whose only
    positive is its own key (a tail class, an empty queue) has
    :math:`L_i = \mathrm{lse}_i - q_i \cdot k_{i^+} / \tau`.

    Args:
        temperature: tau, over 0.
        beta: total weight of the other positives relative to the own key's weight of 1; 0 or more.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, *, temperature: float = 0.07, beta: float = 8.0) -> None:
        super().__init__(temperature=temperature)
        check_number("beta", beta, at_least=0)
        self.beta = beta

    def weights(self, number: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta * (number > 0).to(number.dtype)
        return 1 / (1 + beta), beta / (1 + beta) / number.clamp(min=1)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, beta={self.beta}"


def check_pair(query: Tensor, other: Tensor, name: str, queue: MemoryQueue) -> None:
    if not isinstance(queue, MemoryQueue):
        raise TypeError(f"queue is a {type(queue).__name__}: expected a MemoryQueue")
    check_matrix(query, "query", "(batch, width)")
    if query.shape[1] != queue.feature_dim:
        shape = tuple(query.shape)
        raise ValueError(f"query has shape {shape}: expected (batch, {queue.feature_dim}), the queue's width")
    check_matrix(other, name, "(batch, width)")
    if other.shape != query.shape:
        raise ValueError(f"{name} has shape {tuple(other.shape)}: expected {tuple(query.shape)}, the queries' shape")
    for what, tensor in ((name, other), ("queue", queue.keys)):
        if tensor.device != query.device:
            raise ValueError(f"{what} is on {tensor.device}: expected the device of the queries, {query.device}")
