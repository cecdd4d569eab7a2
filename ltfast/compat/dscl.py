from collections.abc import Sequence

import torch
from torch import Tensor

from ltfast import losses, ops
from ltfast.losses.watch import ENOUGH_KEYS
from ltfast.ops.core.checks import check_labels, check_matrix, check_positive
from ltfast.ops.queue_softmax import merge


def _factor(temperature: float, base_temperature: float | None) -> float:
    if base_temperature is None:
        return 1.0
    check_positive("base_temperature", base_temperature)
    return temperature / base_temperature


def _anchor_classes(labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Relabel the rows by the rank of their label among the labels of the first ``batch`` rows, the anchors.

    Rows whose class has no anchor are distributed over ``batch`` further classes, so that no class becomes large.

    Returns:
        The new class of each row, and of each anchor.
    """
    anchors, _ = labels[:batch].sort()
    rank = torch.searchsorted(anchors, labels).clamp(max=batch - 1)  # the first position of equal labels
    other = batch + torch.arange(len(labels), device=labels.device) * batch // len(labels)
    classes = rank.where(anchors[rank] == labels, other)
    return classes, classes[:batch]


class DSCLLoss(losses.DSCLLoss):
    """Replaces ``DSCLLoss`` of DSCL's training script.

    Args:
        temperature: tau.
        base_temperature: the loss is multiplied by temperature / base_temperature; None means no factor.
        K: number of keys in the queue.
        weighted_beta: beta.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        base_temperature: float | None = None,
        K: int = 128,
        weighted_beta: float = 8.0,
    ) -> None:
        super().__init__(temperature=temperature, beta=weighted_beta)
        self.K = K
        self.factor = _factor(temperature, base_temperature)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the mean loss over the queries.

        Args:
            features: (2 B + K, D), L2-normalised: queries, keys and queue. The queue receives no gradient.
            labels: (2 B + K,), integers of 0 or more.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it. Label values are not checked on a GPU.
        """
        check_matrix(features, "features", "(rows, width)")
        check_labels(labels, features, "labels", classes=2**62)
        batch, odd = divmod(len(features) - self.K, 2)
        if batch < 1 or odd:
            raise ValueError(f"features has {len(features)} rows: expected 2 B + {self.K}, queries, keys and queue")
        if not labels.is_cuda and not torch.compiler.is_compiling() and labels.min() < 0:
            raise ValueError(f"labels has {int(labels.min())}: expected labels of 0 or more")
        both, queue = features[: 2 * batch], features[2 * batch :].detach()
        query, key = both[:batch], both[batch:]
        if self.watch.due(features):
            self.watch.lengths("DSCLLoss", features=features[: 2 * batch + ENOUGH_KEYS])
        itself = torch.arange(batch, device=features.device)
        parts = (
            ops.queue_softmax(query, both, temperature=self.temperature, exclude=itself),
            ops.queue_softmax(query, queue, temperature=self.temperature),
        )
        classes, own = _anchor_classes(labels.long(), batch)
        sums, counts = ops.class_sums(torch.cat([both, queue]), classes, 2 * batch)
        positives, number = sums[own] - query - key, counts[own] - 2
        return self.factor * self.from_sums(query, key, merge(*parts)[0], positives, number).mean()


class PBSDLoss(losses.PBSDLoss):
    """Replaces ``PBSDLoss`` of DSCL's training script.

    Args:
        temperature: tau.
        base_temperature: the loss is multiplied by temperature / base_temperature; None means no factor.
    """

    def __init__(self, temperature: float = 1.0, base_temperature: float | None = None) -> None:
        super().__init__(temperature=temperature)
        self.factor = _factor(temperature, base_temperature)

    def forward(  # type: ignore[override]
        self,
        roi_features: Sequence[Tensor],
        small_qs: Sequence[Tensor],
        k: Tensor,
        queue: Tensor,
        main_labels: Tensor | None = None,
        main_label_queue: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean loss over patches and images.

        Args:
            roi_features, small_qs: L tensors (B, D) each, the features of the pooled and of the cropped patches,
                L2-normalised.
            k: (B, D), the key of each image.
            queue: (D, K), one key per column. It receives no gradient.
            main_labels, main_label_queue: ignored, as in the authors' code.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        if len(roi_features) != len(small_qs) or not len(small_qs):
            raise ValueError(f"small_qs has {len(small_qs)} patches: expected {len(roi_features)}, one or more")
        check_matrix(k, "k", "(batch, width)")
        for name, patches in (("roi_features", roi_features), ("small_qs", small_qs)):
            for number, patch in enumerate(patches):
                check_matrix(patch, f"{name}[{number}]", "(batch, width)")
                if patch.shape != k.shape:
                    expected = f"{tuple(k.shape)}, the shape of k"
                    raise ValueError(f"{name}[{number}] has shape {tuple(patch.shape)}: expected {expected}")
        c, s = torch.cat([x.detach() for x in roi_features]), torch.cat(list(small_qs))
        if self.watch.due(s):
            self.watch.lengths("PBSDLoss", roi_features=c, small_qs=s, k=k, queue=queue[:, :ENOUGH_KEYS].T)
        lse, mean = ops.queue_softmax(torch.cat([c, s]), queue.detach().T, temperature=self.temperature)
        of_c, of_s = zip(lse.split(len(c)), mean.split(len(c)), strict=True)
        own = k.to(lse.dtype).repeat(len(small_qs), 1)
        return self.factor * self.from_attended(c, s, own, of_c, of_s).mean()
