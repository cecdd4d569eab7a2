import torch
from torch import Tensor, nn

from ltfast.losses.dscl import check_pair
from ltfast.losses.memory_queue import MemoryQueue
from ltfast.losses.watch import ENOUGH_KEYS, Watch
from ltfast.ops.core.checks import check_matrix, check_positive
from ltfast.ops.queue_softmax import merge


class PBSDLoss(nn.Module):
    r"""Features of length 1 -> patch-based self-distillation (Xuan and Zhang, "Decoupled Contrastive Learning for
    Long-Tailed Recognition", AAAI 2024): a patch that was cropped out and sent through the network is to be as similar
    to each key as the same patch pooled from the whole image's feature map.

    .. math::

        L = -\sum_t p_t(c) \log p_t(s) = \mathrm{lse}(s) - s \cdot \mathrm{mean}(c) / \tau, \qquad
        \frac{\partial L}{\partial s} = \frac{\mathrm{mean}(s) - \mathrm{mean}(c)}{\tau}

    with p the softmax over the image's own key and the queue, c the pooled and s the cropped patch's feature. No
    gradient reaches the pooled features.

    Args:
        temperature: tau, over 0.

    Features, keys or queued keys that are not of length 1 bring a warning, as in ``SupConQueueLoss``.

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
        """The mean over images and patches.

        Args:
            pooled: (B, L, D) of length 1, any float dtype: L patches of each image, pooled from its feature map.
            cropped: (B, L, D) of length 1: the same patches, cropped and sent through the network.
            key: (B, D) of length 1: each image's own key, without gradient.
            queue: of width D; it may be empty.
            attended: ``queue.attend`` of ``pooled.flatten(0, 1)`` and ``cropped.flatten(0, 1)``, where they went
                through the queue together with others.

        Returns:
            A scalar, float32 (float64 for float64).

        Raises:
            ValueError, TypeError: a bad argument, named.
        """
        for name, patches in (("pooled", pooled), ("cropped", cropped)):
            if not isinstance(patches, Tensor):
                raise TypeError(f"{name} is a {type(patches).__name__}: expected a tensor")
            if patches.dim() != 3 or patches.shape[1] == 0:
                raise ValueError(f"{name} has shape {tuple(patches.shape)}: expected (batch, patches, width), none 0")
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
        """The loss of each patch, from the softmax over the queue and each patch's own key (N, D)."""
        c, s = c.to(own.dtype), s.to(own.dtype)
        with torch.no_grad():
            target = merge(of_c, ((c * own).sum(1) / self.temperature, own))[1]
            target = target + (c - c)  # with an empty queue it would hide that c is not finite
        lse = torch.logaddexp(of_s[0], (s * own).sum(1) / self.temperature)
        return lse - (s * target).sum(1) / self.temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
