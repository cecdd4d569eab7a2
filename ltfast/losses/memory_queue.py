from typing import Any

import torch
from torch import Tensor

from ltfast import ops
from ltfast.losses.distributed import gather
from ltfast.losses.fixed_dtype import FixedDtype
from ltfast.ops.checks import FLOATS, INTEGERS, check_label_values, check_matrix


class MemoryQueue(FixedDtype):
    """The keys of the last batches, the newest in the place of the oldest (He et al., "MoCo", CVPR 2020), with a label
    beside each, as supervised contrastive losses need.

        queue = MemoryQueue(128, 65536, num_classes=1000)
        for images, labels in batches:
            loss = contrastive_loss(query, key, labels, queue)
            queue.enqueue(key, labels)

    It starts empty: only keys that were put in count. The sum of each class's keys is kept up to date, in float64, so
    that no loss compares labels with the whole queue.

    Args:
        feature_dim: D, at least 1.
        size: the most keys it holds, at least 1.
        num_classes: C; labels are then in [0, C). None: as many as come up, but each ``enqueue`` then waits for a GPU.
        dtype: of the keys: float32, bfloat16, float16 or float64. It stays when the module's dtype changes.

    In ``state_dict``: ``keys`` (size, D), ``labels`` (size,), how many are ``filled`` and the next one's ``position``.

    Raises:
        ValueError, TypeError: an argument is out of its range.
    """

    keys: Tensor
    labels: Tensor
    filled: Tensor
    position: Tensor
    sums: Tensor

    def __init__(
        self, feature_dim: int, size: int, *, num_classes: int | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if feature_dim < 1:
            raise ValueError(f"feature_dim is {feature_dim}: expected at least 1")
        if size < 1:
            raise ValueError(f"size is {size}: expected at least 1")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: expected at least 1")
        if dtype not in FLOATS:
            raise TypeError(f"dtype is {dtype}: expected float32, float64, bfloat16 or float16")
        self.feature_dim, self.size, self.num_classes = feature_dim, size, num_classes
        self.register_buffer("keys", torch.zeros(size, feature_dim, dtype=dtype))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        # tensors, so that nothing waits for a GPU and nothing is compiled or captured anew as the queue fills
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        # a row a class: the sum of its keys, and in one more column their number
        sums = torch.zeros(num_classes or 1, feature_dim + 1, dtype=torch.float64)
        self.register_buffer("sums", sums, persistent=False)
        self.register_load_state_dict_post_hook(lambda queue, _: queue._count_anew())

    def __len__(self) -> int:
        """The number of keys in it; waits for a GPU."""
        return int(self.filled)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Add a batch; under ``torch.distributed`` those of all processes, in their order, as many from each.

        A key that is not finite goes in as zeros: an overflow in one step of half-precision training would otherwise
        make the loss NaN for as long as it stays.

        Args:
            keys: (B, D), any float dtype. Of more keys than fit, the last ones stay.
            labels: (B,), integers of 0 or more, below ``num_classes``.

        Raises:
            ValueError, TypeError: a bad argument, named. Labels are not checked on a GPU where ``num_classes`` is set.
        """
        self._check(keys, labels)
        keys = keys.to(self.keys.dtype)
        keys = keys.where(keys.isfinite().all(dim=1, keepdim=True), 0)
        keys, labels = gather(keys)[-self.size :], gather(labels.long())[-self.size :]
        at = (self.position + torch.arange(len(keys), device=keys.device)) % self.size
        gone = (at < self.filled).double()  # of those in these places, what was filled was counted
        self._count(
            torch.cat([keys.double(), -gone[:, None] * self.keys[at]]),
            torch.cat([labels, self.labels[at]]),
            torch.cat([torch.ones_like(gone), -gone]),
        )
        self.keys[at] = keys
        self.labels[at] = labels
        self.position.add_(len(keys)).remainder_(self.size)
        self.filled.add_(len(keys)).clamp_(max=self.size)

    def attend(self, *queries: Tensor, temperature: float) -> list[tuple[Tensor, Tensor]]:
        """``ltfast.ops.queue_softmax`` over the keys, for several sets of queries (B_i, D) in one launch.

        Returns:
            For each set its log-sum-exp (B_i,) and weighted mean of the keys (B_i, D).
        """
        lse, mean = ops.queue_softmax(torch.cat(queries), self.keys, temperature=temperature, valid=self.filled)
        sizes = [len(part) for part in queries]
        return list(zip(lse.split(sizes), mean.split(sizes), strict=True))

    def of_class(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the keys of each label's class, (B, D) float64, and their number, (B,) float64.

        Raises:
            ValueError: a label is out of range; on a GPU they are not checked.
        """
        if not labels.is_cuda and not torch.compiler.is_compiling():
            self.check_labels(labels)
        rows = self.sums[labels.clamp(max=len(self.sums) - 1)]
        if self.num_classes is None:  # of a class beyond all that were seen there is nothing
            rows = rows.where((labels < len(self.sums))[:, None], 0)
        return rows[:, :-1], rows[:, -1]

    def extra_repr(self) -> str:
        return f"{self.feature_dim}, {self.size}, num_classes={self.num_classes}"

    def _count_anew(self) -> None:
        self.sums.zero_()
        filled, step = len(self), 2**20  # a queue of millions is not converted whole
        for start in range(0, filled, step):
            part = slice(start, min(start + step, filled))
            self._count(self.keys[part].double(), self.labels[part], torch.ones_like(self.labels[part]))

    def _count(self, keys: Tensor, labels: Tensor, numbers: Tensor) -> None:
        """Add keys to the sums of their classes, and ``numbers`` to the counts."""
        if self.num_classes is None:
            classes = int(labels.max()) + 1
            if classes > len(self.sums):
                grown = self.sums.new_zeros(max(classes, 2 * len(self.sums)), self.feature_dim + 1)
                grown[: len(self.sums)] = self.sums
                self.sums = grown
        self.sums += ops.class_sums(torch.cat([keys, numbers[:, None].double()], dim=1), labels, len(self.sums))[0]

    def _check(self, keys: Any, labels: Any) -> None:
        check_matrix(keys, "keys", f"(batch, {self.feature_dim})")
        if keys.shape[1] != self.feature_dim:
            raise ValueError(f"keys has shape {tuple(keys.shape)}: expected (batch, {self.feature_dim})")
        if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels is of {kind}: expected a tensor of integer labels")
        if labels.shape != keys.shape[:1]:
            raise ValueError(f"labels has shape {tuple(labels.shape)}: expected ({len(keys)},), a label a key")
        for name, tensor in (("keys", keys), ("labels", labels)):
            if tensor.device != self.keys.device:
                raise ValueError(f"{name} is on {tensor.device}: expected it where the queue is, on {self.keys.device}")
        if self.num_classes is None or not labels.is_cuda:
            self.check_labels(labels)

    def check_labels(self, labels: Tensor) -> None:
        """Read the labels.

        Raises:
            ValueError: one is out of range.
        """
        if self.num_classes is not None:
            check_label_values(labels, self.num_classes, "labels")
        elif labels.min() < 0:
            raise ValueError(f"labels has {int(labels.min())}: expected labels of 0 or more")
