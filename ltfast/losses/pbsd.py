import torch
from torch import Tensor, nn

from ltfast.losses.dscl import check_pair
from ltfast.losses.memory_queue import MemoryQueue
from ltfast.losses.watch import ENOUGH_KEYS, Watch
from ltfast.ops.core.checks import check_matrix, check_positive
from ltfast.ops.queue_softmax import merge


class PBSDLoss(nn.Module):
    r"""Patch-based self-distillation loss on L2-normalised features (Xuan and Zhang, "Decoupled Contrastive Learning
    for Long-Tailed Recognition", AAAI 2024). It matches the similarities of a cropped patch to all keys with those of
    the same patch pooled from the feature map of the whole image.

    .. math::

        L = -\sum_t p_t(c) \log p_t(s) = \mathrm{lse}(s) - s \cdot \mathrm{mean}(c) / \tau, \qquad
        \frac{\partial L}{\partial s} = \frac{\mathrm{mean}(s) - \mathrm{mean}(c)}{\tau}

    Here p is the softmax over the image's own key and the queue, c the feature of the pooled patch and s that of the
    cropped patch. The pooled features receive no gradient.

    Args:
        temperature: tau, over 0.

    Features, keys or queued keys that are not L2-normalised cause a warning, as in ``SupConQueueLoss``.

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
        pooled: Tensor,
        cropped: Tensor,
        key: Tensor,
        queue: MemoryQueue,
        attended: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Compute the mean loss over images and patches.

        Args:
            pooled: (B, L, D), any float dtype: features of L patches per image, pooled from its feature map;
                L2-normalised.
            cropped: (B, L, D): features of the same patches, cropped and passed through the network; L2-normalised.
            key: (B, D): each image's own key, L2-normalised and without gradient.
            queue: a queue of keys of width D; it may be empty.
            attended: the result of ``queue.attend`` for ``pooled.flatten(0, 1)`` and ``cropped.flatten(0, 1)``, if it
                is already computed.

        Returns:
            A scalar, float32 (float64 for float64).

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        for name, patches in (("pooled", pooled), ("cropped", cropped)):
            if not isinstance(patches, Tensor):
                raise TypeError(f"{name} is a {type(patches).__name__}: expected a tensor")
            if patches.dim() != 3 or patches.shape[1] == 0:
                shape = tuple(patches.shape)
                raise ValueError(f"{name} has shape {shape}: expected (batch, patches, width), not empty")
        check_matrix(key, "key", "(batch, width)")
        if key.shape != (len(pooled), pooled.shape[2]):
            raise ValueError(f"key has shape {tuple(key.shape)}: expected {(len(pooled), pooled.shape[2])}")
        c, s = pooled.detach().flatten(0, 1), cropped.flatten(0, 1)
        check_pair(s, c, "pooled", queue)
        if self.watch.due(cropped):
            in_queue = queue.keys[:ENOUGH_KEYS]
            self.watch.lengths("PBSDLoss", pooled=pooled, cropped=cropped, key=key, queue=in_queue)
        of_c, of_s = queue.attend(c, s, temperature=self.temperature) if attended is None else attended
        own = key.to(of_s[0].dtype).repeat_interleave(pooled.shape[1], dim=0)
        return self.from_attended(c, s, own, of_c, of_s).mean()

    def from_attended(
        self, c: Tensor, s: Tensor, own: Tensor, of_c: tuple[Tensor, Tensor], of_s: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The loss of each patch, (N,), from the softmax over the queue and each patch's own key (N, D)."""
        c, s = c.to(own.dtype), s.to(own.dtype)
        with torch.no_grad():
            target = merge(of_c, ((c * own).sum(1) / self.temperature, own))[1]
            target = target + (c - c)  # propagates non-finite values of c, which an empty queue would hide
        lse = torch.logaddexp(of_s[0], (s * own).sum(1) / self.temperature)
        return lse - (s * target).sum(1) / self.temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
