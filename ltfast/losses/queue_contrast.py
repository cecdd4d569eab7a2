from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ltfast import ops
from ltfast.losses.dscl import DSCLLoss
from ltfast.losses.memory_queue import MemoryQueue
from ltfast.losses.pbsd import PBSDLoss
from ltfast.ops.core.checks import check_number


class QueueLosses(nn.Module):
    """Computes both losses of DSCL; queries and patches attend to the queue in one kernel launch."""

    def __init__(self, contrast: DSCLLoss, distillation: PBSDLoss, queue: MemoryQueue) -> None:
        super().__init__()
        self.contrast, self.distillation, self.queue = contrast, distillation, queue

    def forward(
        self, query: Tensor, key: Tensor, labels: Tensor, pooled: Tensor | None = None, cropped: Tensor | None = None
    ) -> Tensor:
        """The contrastive loss, (1,); or with patches (B, L, D), this loss and the distillation loss, (2,)."""
        if pooled is None or cropped is None:
            return self.contrast(query, key, labels, self.queue)[None]
        attended = self.queue.attend(
            query,
            pooled.detach().flatten(0, 1),
            cropped.flatten(0, 1),
            temperature=self.contrast.temperature,
        )
        contrast = self.contrast(query, key, labels, self.queue, attended[0])
        distillation = self.distillation(pooled, cropped, key, self.queue, (attended[1], attended[2]))
        return torch.stack([contrast, distillation])


class QueueContrast(nn.Module):
    """Decoupled contrastive learning of an encoder: projection head, momentum encoder, queue of keys, and losses.

    Xuan and Zhang, "Decoupled Contrastive Learning for Long-Tailed Recognition" (DSCL), AAAI 2024. In your own training
    loop:

        contrast = QueueContrast(encoder, width, num_classes)
        optimizer = torch.optim.SGD(contrast.parameters(), lr=0.1)
        for (query_images, key_images), labels in batches:
            loss = contrast(query_images, key_images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            contrast.after_step()

    The encoder is trained in place; afterwards, train a classifier on its features. In training mode each call adds its
    keys to the queue. In evaluation mode a call changes no state.

    Args:
        encoder: a network without its classifier: images -> features (B, width). With patches, it must be a model of
            timm's, whose feature map is as wide as its features. Its parameters are float32, or float64; use autocast
            for half precision. If weights are loaded into it later, call ``copy_encoder()``.
        width: width of the encoder's features.
        num_classes: C, at least 1; the queue keeps the sum of the keys of each class.
        feature_dim: width D of the projection.
        hidden_dim: width of the projection head's hidden layer; None means ``width``.
        queue_size: maximum number of keys in the queue.
        momentum: share of the momentum encoder that is kept at each ``after_step``, in [0, 1).
        temperature, beta: see ``DSCLLoss``.
        pbsd_weight: weight of the patches' self-distillation, 0 or more.
        queue_sharded: whether to split the queue over the processes; see ``MemoryQueue``.

    ``state_dict`` contains encoder, projection head, momentum encoder and queue. If the queue is sharded, all processes
    must call ``losses.queue.collect()`` before it.

    Under ``torch.distributed``, wrap the module in ``DistributedDataParallel``, which calls ``forward``, and call
    ``after_step`` of the module itself.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        num_classes: int,
        *,
        feature_dim: int = 128,
        hidden_dim: int | None = None,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.07,
        beta: float = 8.0,
        pbsd_weight: float = 1.5,
        queue_sharded: bool = False,
    ) -> None:
        from ltfast.models import ProjectionHead  # this package imports timm, which takes seconds

        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder is a {type(encoder).__name__}: expected a torch.nn.Module")
        for name, value in (("width", width), ("queue_size", queue_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}: expected at least 1")
        check_number("momentum", momentum, at_least=0)
        if momentum >= 1:
            raise ValueError(f"momentum is {momentum}: expected a number in [0, 1)")
        check_number("pbsd_weight", pbsd_weight, at_least=0)
        self.width, self.momentum, self.pbsd_weight = width, momentum, pbsd_weight
        self.encoder = encoder
        self.projection = ProjectionHead(width, feature_dim, hidden_dim=hidden_dim, batch_norm=False)
        self.key_network = deepcopy(self._network()).requires_grad_(False)
        self.losses = QueueLosses(
            DSCLLoss(temperature=temperature, beta=beta),
            PBSDLoss(temperature=temperature),
            MemoryQueue(feature_dim, queue_size, num_classes=num_classes, sharded=queue_sharded),
        )

    def forward(
        self,
        query_images: Tensor,
        key_images: Tensor,
        labels: Tensor,
        patches: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch: ``contrast + pbsd_weight * distillation``, or the former alone without patches.

        Args:
            query_images: (B, channels, H, W), a view of each image.
            key_images: (B, channels, H, W), another view of each image, for the momentum encoder.
            labels: (B,), integers in [0, C).
            patches: (B, L, channels, P, P), L patches of each query image, cropped and resized. None leaves out the
                distillation.
            boxes: (B, L, 4), the place of each patch as x1, y1, x2, y2 in pixels of the query image.
                ``ltfast.data.PatchViews`` makes views, patches and boxes.

        Returns:
            A scalar.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        return self.total(self.parts(query_images, key_images, labels, patches, boxes))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The loss from its parts."""
        if "distillation" not in parts:
            return parts["contrast"]
        return parts["contrast"] + self.pbsd_weight * parts["distillation"]

    def parts(
        self,
        query_images: Tensor,
        key_images: Tensor,
        labels: Tensor,
        patches: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the parts of the loss, ``contrast`` and with patches ``distillation``, for example to log them. A
        call of the module calls this method; the arguments and errors are the same."""
        if (patches is None) != (boxes is None):
            missing, given = ("patches", "boxes") if patches is None else ("boxes", "patches")
            raise ValueError(f"{missing} is None: expected a tensor, as {given}")
        if patches is None or boxes is None:
            query, key = self._project(self.encoder(query_images)), self._keys(key_images)
            losses = self.losses(query, key, labels)
        else:
            maps, features = self._feature_map(query_images)
            query, key = self._project(features), self._keys(key_images)
            losses = self.losses(query, key, labels, *self._of_patches(maps, query_images, patches, boxes))
        if self.training:
            self.losses.queue.enqueue(key, labels)
        return dict(zip(("contrast", "distillation"), losses, strict=False))

    def after_step(self) -> None:
        """Move the momentum encoder towards the encoder. Call it after each step of the optimiser.

        Raises:
            ValueError: the encoder has half-precision parameters, in which so small a step is rounded to nothing.
        """
        own, keys = list(self._network().parameters()), list(self.key_network.parameters())
        half = [p.dtype for p in own if p.dtype in (torch.bfloat16, torch.float16)]
        if half:
            raise ValueError(
                f"encoder has parameters of dtype {half[0]}: expected float32 or float64, since the momentum encoder "
                "moves by steps that half precision rounds to nothing; use torch.autocast for half precision"
            )
        get_ema_multi_avg_fn(self.momentum)(keys, own, None)
        with torch.no_grad():
            for key, value in zip(self.key_network.buffers(), self._network().buffers(), strict=True):
                key.copy_(value)

    def copy_encoder(self) -> None:
        """Let the momentum encoder start from the encoder's present weights."""
        self.key_network.load_state_dict(self._network().state_dict())

    def pool_patches(self, maps: Tensor, boxes: Tensor, scale: float) -> Tensor:
        """Features (B, L, D) of patches, from feature maps (B, D, H, W) and boxes (B, L, 4) in pixels of the image.
        ``scale`` is the ratio of the map's size to the image's."""
        return ops.patch_roi_pool(maps, boxes, spatial_scale=scale)

    def extra_repr(self) -> str:
        return f"width={self.width}, momentum={self.momentum}, pbsd_weight={self.pbsd_weight}"

    def _network(self) -> nn.Sequential:
        return nn.Sequential(OrderedDict(encoder=self.encoder, projection=self.projection))

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        return self.key_network(images)

    def _feature_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        from ltfast.models import feature_map

        if not hasattr(self.encoder, "forward_features"):
            raise TypeError(f"encoder is a {type(self.encoder).__name__}: expected a model of timm's, to use patches")
        return feature_map(self.encoder, images)

    def _of_patches(self, maps: Tensor, images: Tensor, patches: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, L, D) of the pooled and of the cropped patches."""
        if not isinstance(patches, Tensor) or patches.dim() != 5:
            what = f"has shape {tuple(patches.shape)}" if isinstance(patches, Tensor) else f"is {patches!r}"
            raise ValueError(f"patches {what}: expected (batch, patches, channels, height, width)")
        with torch.no_grad():  # the targets of the distillation
            pooled = self._project(self.pool_patches(maps, boxes, maps.shape[-1] / images.shape[-1]).flatten(0, 1))
        cropped = self._project(self.encoder(patches.flatten(0, 1)))
        return pooled.unflatten(0, patches.shape[:2]), cropped.unflatten(0, patches.shape[:2])

    def _project(self, features: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.width:
            shape = tuple(features.shape)
            raise ValueError(
                f"encoder returns features of shape {shape}: expected (batch, {self.width}), as width says"
            )
        return self.projection(features)
