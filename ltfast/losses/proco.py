from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from ltfast import ops
from ltfast.losses.sharded_state import ShardedState
from ltfast.losses.watch import Watch
from ltfast.ops.core.checks import (
    check_class_weight,
    check_integer,
    check_label_smoothing,
    check_label_values,
    check_labels,
    check_matrix,
    check_positive,
    check_reduction,
)
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts
from ltfast.ops.core.collectives import class_ranges, gather, gather_together, world_size

_LARGEST_KAPPA = 1e5
_START = 0.9  # length of the mean of a class without features


class ProCoLoss(ShardedState):
    """Probabilistic contrastive loss on L2-normalised features.

    Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024. The features of each
    class are modelled by a von Mises-Fisher distribution on the unit sphere. Its direction is that of the mean of the
    class's features, and the length R of the mean gives the concentration kappa = D R / (1 - R^2), at most 1e5. The
    logit of a feature for a class is the expectation of a contrastive loss over the class's distribution;
    ``ltfast.ops.vmf`` gives the formula. Usage:

        for epoch in range(epochs):
            proco.start_epoch()
            for images, labels in batches:
                features = F.normalize(head(backbone(images)))
                proco.update(features, labels)  # with two views: update with both before computing either loss
                loss = proco(features, labels)

    The means are over the features of the current epoch so far and of the previous epoch. (The authors use two
    estimators for this: the current one, and a second one that starts at each epoch and replaces the current one at the
    next.) A class without features in both epochs has a random direction and R = 0.9. These directions depend only on C
    and D, so they are the same on every process and after a restart.

    Args:
        num_classes: C, at least 1.
        feature_dim: D, at least 2.
        temperature: tau, over 0.
        class_counts: (C,), training images of each class, in the order of the labels. The log-frequencies are added to
            the logits in the loss (logit adjustment), but not in ``logits``. None adds nothing.
        weight: (C,), floating-point, the weight of each class in the loss, as in ``nn.CrossEntropyLoss``; None weights
            all classes alike. It does not change the statistics.
        label_smoothing: in [0, 1), as in ``nn.CrossEntropyLoss``.
        ignore_index: features with this label are excluded from the statistics, the loss and its mean.
        reduction: "mean", "sum" or "none". With weights, the mean over labels divides by the sum of their weights.
        class_parallel: whether to split the classes over the processes of ``torch.distributed``
            (``ltfast.ops.core.collectives.class_ranges``), for more classes than fit on one device: each process stores
            C_r x D statistics. The loss does not change; see ``ltfast.ops.class_parallel_vmf_cross_entropy``.
            ``logits`` returns the logits of the global batch for this process's classes. All processes must call each
            method equally often, with batches of the same size, and must call ``collect()`` before ``state_dict()``,
            which returns the state of the whole loss. The targets are then labels, without weights or smoothing.

    Shapes: features (B, D), any float dtype, L2-normalised; labels (B,), integers, or for the loss alone (B, C)
    probabilities. The loss is a scalar, or (B,) for "none"; it is float32 (float64 for float64).

    The loss of plain labels needs O((B + C) D) memory. With weights, label smoothing or probabilities, it stores the
    (B, C) logits.

    The statistics are buffers and stay float32. Under ``torch.distributed``, ``update`` sums over the batches of all
    processes, which must call it equally often.

    The loss warns, once per object for each kind of warning, about features that are not L2-normalised, about a loss
    with gradient in training mode before any ``update``, and if every class has the largest kappa. It checks some calls
    on a CPU, and on a GPU only with ``LTFAST_CHECKS=1``.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    sums: Tensor
    counts: Tensor
    past_sums: Tensor
    past_counts: Tensor
    directions: Tensor
    kappa: Tensor
    start: Tensor
    log_prior: Tensor | None
    weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        *,
        temperature: float = 0.1,
        class_counts: ClassCounts | None = None,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
        class_parallel: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: expected at least 1")
        if feature_dim < 2:
            raise ValueError(f"feature_dim is {feature_dim}: expected at least 2")
        check_positive("temperature", temperature)
        log_prior = None
        if class_counts is not None:
            counts = parse_class_counts(class_counts)
            if len(counts) != num_classes:
                raise ValueError(f"class_counts has {len(counts)} classes: expected {num_classes}")
            log_prior = (counts / counts.sum()).log().float()
        check_class_weight(weight, num_classes)
        check_label_smoothing(label_smoothing)
        check_integer("ignore_index", ignore_index)
        check_reduction(reduction)
        if class_parallel and (weight is not None or label_smoothing):
            name = "label_smoothing" if weight is None else "weight"
            raise ValueError(f"{name} is set: expected none with class_parallel=True")
        self.register_buffer("weight", weight, persistent=False)
        self.label_smoothing = label_smoothing
        self.ignore_index, self.reduction = ignore_index, reduction
        self.num_classes, self.feature_dim, self.temperature = num_classes, feature_dim, temperature
        # A separate generator gives the same directions on every process, independent of the seeds.
        generator = torch.Generator("cpu").manual_seed(0)
        start = torch.randn(num_classes, feature_dim, generator=generator, device="cpu", dtype=torch.float32)
        self.first = 0  # first class of this process
        if class_parallel:
            ranges = class_ranges(num_classes)
            own = self.share_out(num_classes, [slice(classes.start, classes.stop) for classes in ranges])
            self.first, start = own.start, start[own].clone()
            log_prior = None if log_prior is None else log_prior[own].clone()
        self.hold("start", _START * F.normalize(start), persistent=False)
        if log_prior is None:
            self.log_prior = None
        else:
            self.hold("log_prior", log_prior, persistent=False)
        # Sums of this epoch and of the previous one. The latter holds the start of a class without features there.
        self.hold("sums", torch.zeros_like(start))
        self.hold("counts", start.new_zeros(len(start), dtype=torch.int64))
        self.hold("past_sums", self.start.clone())
        self.hold("past_counts", self.counts.clone())
        self.hold("directions", torch.empty_like(start))
        self.hold("kappa", start.new_empty(len(start)))
        self._estimate()
        self.feature_watch, self.statistics_watch = Watch(), Watch()
        self.updated = False

    @torch.no_grad()
    def start_epoch(self) -> None:
        """Start an epoch: from now on, the statistics use the epoch that ends and the new one."""
        self.past_sums.copy_(torch.where(self.counts[:, None] > 0, self.sums, self.start))
        self.past_counts.copy_(self.counts)
        self.sums.zero_()
        self.counts.zero_()
        self._estimate()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch to the statistics; computing the loss does not.

        Non-finite features are skipped: an overflow in one step of half-precision training would otherwise make every
        loss NaN until the end of the next epoch.

        Args:
            features: (N, D), any float dtype, L2-normalised.
            labels: (N,), integers in [0, C), or ``ignore_index``.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        self._check(features)
        check_labels(labels, features, "labels", classes=self.num_classes, ignore_index=self.ignore_index)
        kept = labels.long() != self.ignore_index
        labels = labels.where(kept, 0)
        # An extra column is 1 for each valid feature. Its sums are the counts, so one collective reduces both.
        counts = features.sum(dim=1, keepdim=True, dtype=torch.float32).isfinite() & kept[:, None]
        rows = torch.cat([features.where(counts, 0), counts.to(features.dtype)], dim=1)
        if self.processes > 1:
            rows, labels = gather_together(rows, labels.long())
            if labels.device.type == "cpu":  # all processes check all labels, so none waits for one that has raised
                check_label_values(labels, self.num_classes, "labels")
            labels = labels - self.first
            here = (labels >= 0) & (labels < len(self.sums))
            rows, labels = rows.where(here[:, None], 0), labels.where(here, 0)
        both = ops.class_sums(rows, labels, len(self.sums))[0].float()
        if self.processes == 1 and world_size() > 1:
            distributed.all_reduce(both)
        self.sums += both[:, :-1]
        self.counts += both[:, -1].long()
        self._estimate()
        if not torch.compiler.is_compiling():
            self.updated = True

    def logits(self, features: Tensor) -> Tensor:
        """The expected contrastive logits, (B, C), float32 (float64 for float64), without the log-frequencies.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        self._check(features)
        directions, kappa = self._distributions(features)
        if self.processes > 1:
            features = gather(features)
        return ops.vmf_logits(features, directions, kappa, temperature=self.temperature)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of the logits plus log-frequencies. Call ``update`` with the batch first.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        self._check(features)
        directions, kappa = self._distributions(features)
        soft = isinstance(labels, Tensor) and labels.dim() == 2
        if self.processes == 1 and (soft or self.weight is not None or self.label_smoothing):
            logits = ops.vmf_logits(features, directions, kappa, temperature=self.temperature)
            return ops.cross_entropy(
                logits,
                labels,
                self.log_prior,
                weight=self.weight,
                label_smoothing=self.label_smoothing,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
            )
        options: dict[str, Any] = {
            "log_prior": self.log_prior,
            "temperature": self.temperature,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
        }
        if self.processes > 1:
            return ops.class_parallel_vmf_cross_entropy(
                features, labels, directions, kappa, self.num_classes, **options
            )
        return ops.vmf_cross_entropy(features, labels, directions, kappa, **options)

    def extra_repr(self) -> str:
        return f"{self.num_classes}, {self.feature_dim}, temperature={self.temperature}"

    def _check(self, features: Tensor) -> None:
        self.check_processes()
        check_matrix(features, "features", f"(batch, {self.feature_dim})", fewest_rows=0)
        if features.shape[1] != self.feature_dim:
            raise ValueError(f"features has shape {tuple(features.shape)}: expected (batch, {self.feature_dim})")
        if features.device != self.sums.device:
            raise ValueError(f"features is on {features.device}: expected the device of the loss, {self.sums.device}")
        if self.feature_watch.due(features):
            self.feature_watch.lengths("ProCoLoss", features=features)

    def _distributions(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and concentrations, copied if a backward pass follows: ``update`` may run before it."""
        if features.requires_grad and torch.is_grad_enabled():
            if self.training and self.statistics_watch.due(self.kappa):
                self._look_at_statistics()
            return self.directions.clone(), self.kappa.clone()
        return self.directions, self.kappa

    def _look_at_statistics(self) -> None:
        seen = self.counts + self.past_counts
        if not self.updated and not seen.any():  # no update in this process, nor before a loaded checkpoint
            self.statistics_watch.warn(
                "ProCoLoss: update() was never called before the loss, so every class has a random direction; "
                "call update(features, labels) before the loss of each batch"
            )
        elif seen.max() > 1 and (self.kappa >= _LARGEST_KAPPA).all():
            self.statistics_watch.warn(
                f"ProCoLoss: every class has the largest concentration, {_LARGEST_KAPPA:.0e}; expected L2-normalised "
                "features that differ within a class. Normalise the features, and check that the network does not map "
                "all images to one feature"
            )

    def _estimate(self) -> None:
        """Compute the directions and concentrations from the sums of both epochs."""
        if self.processes > 1:
            self.changed()
        # the start of a class is dropped once the class has features
        kept = (self.past_counts > 0) | (self.counts == 0)
        torch.addcmul(self.sums, self.past_sums, kept[:, None].float(), out=self.directions)
        lengths = torch.linalg.vector_norm(self.directions, dim=1)
        self.directions.div_(lengths.clamp(min=1e-12)[:, None])
        means = lengths / (self.past_counts + self.counts).clamp(min=1)
        kappa = self.feature_dim * means / (1 - means.square()).clamp(min=1e-12)
        self.kappa.copy_(kappa.clamp(max=_LARGEST_KAPPA))
