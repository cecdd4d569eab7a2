from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ltfast import ops
from ltfast.losses.sharded_state import ShardedState
from ltfast.ops.core.checks import FLOATS, INTEGERS, check_label_values, check_matrix
from ltfast.ops.core.collectives import gather, gather_together, hand_back, rank, world_size
from ltfast.ops.queue_softmax import merge


class MemoryQueue(ShardedState):
    """A first-in, first-out queue of the keys of the last batches (He et al., "MoCo", CVPR 2020) with their labels, for
    supervised contrastive losses.

        queue = MemoryQueue(128, 65536, num_classes=1000)
        for images, labels in batches:
            loss = contrastive_loss(query, key, labels, queue)
            queue.enqueue(key, labels)

    The queue starts empty, and losses use only the slots that are filled. It maintains the sum of the keys of each
    class in float64, so losses need not compare labels with the whole queue.

    Args:
        feature_dim: D, at least 1.
        size: maximum number of keys, at least 1.
        num_classes: C. Labels must then be in [0, C), and there are C class sums. None accepts all labels of 0 or more
            and keeps sums only for the classes in the queue, but each ``enqueue`` then synchronises with the GPU.
        dtype: dtype of the keys: float32, bfloat16, float16 or float64. It is kept when the module's dtype changes.
        sharded: whether to split the queue over the W processes of ``torch.distributed``. Each process then stores
            every W-th key, and each query is compared with the keys of all processes. With b queries and B keys per
            process, each process receives (W - 1) b (2 D + 1) values in ``attend`` and about 2 (W - 1) B (D + 1) in
            ``enqueue``. The backward pass needs no communication; it cannot be differentiated again. All processes must
            call ``attend`` and ``enqueue`` equally often, with batches of the same size.

    ``state_dict`` holds ``keys`` (size, D), ``labels`` (size,), the number of ``filled`` slots, and the ``position`` of
    the next key. If the queue is sharded over several processes, all of them must call ``collect()`` before
    ``state_dict()``. The state does not depend on ``sharded``: both kinds of queue can load it.

    Raises:
        ValueError: an argument is out of its range, or there are fewer keys than processes.
        TypeError: the dtype is not supported.
    """

    keys: Tensor
    labels: Tensor
    filled: Tensor
    position: Tensor
    classes: Tensor | None
    sums: Tensor

    def __init__(
        self,
        feature_dim: int,
        size: int,
        *,
        num_classes: int | None = None,
        dtype: torch.dtype = torch.float32,
        sharded: bool = False,
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
        if sharded:
            processes = world_size()
            if size < processes:
                raise ValueError(f"size is {size}: expected at least {processes}, one key per process")
            # round-robin, so that all processes have the same number of keys while the queue fills
            self.share_out(size, [slice(number, size, processes) for number in range(processes)])
        # This process stores the slots first, first + step, ... of the whole queue.
        self.first, self.step = (rank(), self.processes) if sharded else (0, 1)
        places = len(range(self.first, size, self.step))
        self.hold("keys", torch.zeros(places, feature_dim, dtype=dtype))
        self.hold("labels", torch.zeros(places, dtype=torch.int64))
        # Tensors, not integers: they need no GPU synchronisation, recompilation or new capture as the queue fills.
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        # one row per class: the sum of its keys, and their number in the last column
        sums = torch.zeros(num_classes or 1, feature_dim + 1, dtype=torch.float64)
        self.register_buffer("sums", sums, persistent=False)
        # The label of each row in ascending order, free rows last. With a given number of classes, row c is class c.
        classes = torch.full((1,), _FREE) if num_classes is None else None
        self.register_buffer("classes", classes, persistent=False)

    def __len__(self) -> int:
        """The number of keys in the queue, over all processes. Reading it synchronises with the GPU."""
        return int(self.filled)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Add a batch of keys.

        Under ``torch.distributed``, the batches of all processes are added in rank order; they must have the same size.
        A non-finite key is stored as zeros: an overflow in one step of half-precision training would otherwise make the
        loss NaN until the key leaves the queue.

        Args:
            keys: (B, D), any float dtype. If there are more keys than fit, the last ones are kept.
            labels: (B,), integers of 0 or more, below ``num_classes``.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it. On a GPU, label values are not checked
                if ``num_classes`` is set.
        """
        self.check_processes()
        self._check(keys, labels)
        keys = keys.to(self.keys.dtype)
        keys = keys.where(keys.isfinite().all(dim=1, keepdim=True), 0)
        number = min(len(keys) * world_size(), self.size)  # keys that are kept
        # An upper bound on the new keys per process, plus one where the ring wraps around. All processes must exchange
        # the same number, though some have one slot less: those send their first slot twice, and count it once.
        share = number if self.step == 1 else min(-(-self.size // self.step), -(-number // self.step) + 1)
        turn = torch.arange(share, device=keys.device)
        place = ((self.position - self.first + self.step - 1) // self.step + turn) % len(self.keys)
        in_whole = self.first + place * self.step
        row = (in_whole - self.position) % self.size
        comes = row < number
        gone = (comes & (turn < len(self.keys)) & (in_whole < self.filled)).double()  # only filled slots were counted
        old_keys, old_labels = self.keys[place], self.labels[place]
        if self.step == 1:
            keys, labels = gather_together(keys, labels.long())
            gone_keys, gone_labels = old_keys, old_labels
        else:  # the sums cover all keys: each process subtracts the keys that leave in any process
            keys, labels, gone_keys, gone_labels, gone = gather_together(
                keys, labels.long(), old_keys, old_labels, gone
            )
        keys, labels = keys[-number:], labels[-number:]
        self._count(
            torch.cat([keys.double(), -gone[:, None] * gone_keys]),
            torch.cat([labels, gone_labels]),
            torch.cat([torch.ones_like(labels, dtype=torch.float64), -gone]),
        )
        row = row.clamp(max=number - 1)
        self.keys[place] = keys[row].where(comes[:, None], old_keys)
        self.labels[place] = labels[row].where(comes, old_labels)
        self.position.add_(number).remainder_(self.size)
        self.filled.add_(number).clamp_(max=self.size)
        if self.step > 1:
            self.changed()

    def attend(self, *queries: Tensor, temperature: float) -> list[tuple[Tensor, Tensor]]:
        """Apply ``ltfast.ops.queue_softmax`` over the keys to several sets of queries (B_i, D) in one launch.

        Returns:
            For each set, the log-sum-exp (B_i,) and the softmax-weighted mean of the keys (B_i, D).
        """
        self.check_processes()
        joined = torch.cat(queries)
        if self.step == 1:
            lse, mean = ops.queue_softmax(joined, self.keys, temperature=temperature, valid=self.filled)
        else:
            here = (self.filled - self.first + self.step - 1) // self.step
            lse, mean = _ShardedSoftmax.apply(joined, self.keys, here, temperature)
        sizes = [len(part) for part in queries]
        return list(zip(lse.split(sizes), mean.split(sizes), strict=True))

    def of_class(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the keys of each label's class, (B, D) float64, and their number, (B,) float64.

        Raises:
            ValueError: a label is out of range. Labels are not checked on a GPU.
        """
        if not labels.is_cuda and not torch.compiler.is_compiling():
            self.check_labels(labels)
        if self.classes is None:
            rows = self.sums[labels.clamp(max=len(self.sums) - 1)]
        else:
            row, found = _find(self.classes, labels.long())
            rows = self.sums[row].where(found[:, None], 0)
        return rows[:, :-1], rows[:, -1]

    def extra_repr(self) -> str:
        return f"{self.feature_dim}, {self.size}, num_classes={self.num_classes}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        keys, labels = (state_dict.get(prefix + name) for name in ("keys", "labels"))
        self.sums.zero_()  # this also frees all rows
        if keys is None or labels is None or len(keys) != self.size or len(labels) != self.size:
            return  # load_state_dict reports the error
        filled, step = len(self), 2**20  # blocks, so that a large queue is not converted to float64 at once
        for start in range(0, filled, step):
            part = slice(start, min(start + step, filled))
            some = keys[part].to(self.sums.device, self.keys.dtype).double()
            self._count(some, labels[part].to(self.sums.device), some.new_ones(len(some)))

    def _count(self, keys: Tensor, labels: Tensor, numbers: Tensor) -> None:
        """Add the keys to the sums of their classes, and ``numbers`` to the classes' counts."""
        if self.classes is not None:
            row, found = _find(self.classes, labels)
            if not found.all():
                self.classes, self.sums = _with_classes(self.classes, self.sums, labels)
                row, _ = _find(self.classes, labels)
            labels = row
        self.sums += ops.class_sums(torch.cat([keys, numbers[:, None].double()], dim=1), labels, len(self.sums))[0]

    def _check(self, keys: Any, labels: Any) -> None:
        check_matrix(keys, "keys", f"(batch, {self.feature_dim})")
        if keys.shape[1] != self.feature_dim:
            raise ValueError(f"keys has shape {tuple(keys.shape)}: expected (batch, {self.feature_dim})")
        if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels is of type {kind}: expected a tensor of integer labels")
        if labels.shape != keys.shape[:1]:
            raise ValueError(f"labels has shape {tuple(labels.shape)}: expected ({len(keys)},), one label per key")
        for name, tensor in (("keys", keys), ("labels", labels)):
            if tensor.device != self.keys.device:
                raise ValueError(f"{name} is on {tensor.device}: expected the device of the queue, {self.keys.device}")
        if self.num_classes is None or not (labels.is_cuda or torch.compiler.is_compiling()):
            self.check_labels(labels)

    def check_labels(self, labels: Tensor) -> None:
        """Check the label values.

        Raises:
            ValueError: a label is out of range.
        """
        if self.num_classes is not None:
            check_label_values(labels, self.num_classes, "labels")
        elif labels.min() < 0:
            raise ValueError(f"labels has {int(labels.min())}: expected labels of 0 or more")


_FREE = torch.iinfo(torch.int64).max


def _find(classes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each label in the sorted classes, and whether it is present."""
    row = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return row, classes[row] == labels


def _with_classes(classes: Tensor, sums: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The union of the classes that have keys and of the labels, with their sums. The number of rows grows by doubling,
    so that growing is rare."""
    held = sums[:, -1] > 0
    wanted = torch.cat([classes[held], labels]).unique()
    rows = len(classes) if len(wanted) <= len(classes) else max(len(wanted), 2 * len(classes))
    joined, grown = classes.new_full((rows,), _FREE), sums.new_zeros(rows, sums.shape[1])
    joined[: len(wanted)] = wanted
    grown[torch.searchsorted(joined, classes[held])] = sums[held]
    return joined, grown


class _ShardedSoftmax(torch.autograd.Function):
    """``ltfast.ops.queue_softmax`` over the keys of all processes. In this one, the first ``here`` keys are valid."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, here: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        lse, mean = ops.queue_softmax(gather(queries), keys, temperature=temperature, valid=here)
        parts = hand_back(torch.cat([mean, lse[:, None]], dim=1))
        lse, mean = reduce(merge, [(part[:, -1], part[:, :-1]) for part in parts])
        ctx.save_for_backward(mean)
        ctx.temperature, ctx.dtype = temperature, queries.dtype
        ctx.mark_non_differentiable(mean)
        return lse, mean

    @staticmethod
    def backward(ctx: Any, grad_lse: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("create_graph=True: a sharded queue's log-sum-exp cannot be differentiated twice")
        (mean,) = ctx.saved_tensors
        return (mean * (grad_lse / ctx.temperature)[:, None]).to(ctx.dtype), None, None, None
