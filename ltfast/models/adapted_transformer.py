"""A frozen vision transformer of timm's with adapters."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, get_args

import torch
from timm.layers import RmsNorm
from torch import Tensor, nn

from ltfast.errors import SettingError
from ltfast.models.adapters import SSF, AdaptFormer, LoRA, SequentialAdapter
from ltfast.models.prompts import new_prompts
from ltfast.models.transformer_blocks import (
    PROJECTIONS,
    Adapters,
    check_blocks,
    check_ropes,
    embed,
    pooled_features,
    pooled_tokens,
    run_block,
)

Adapter = Literal[
    "none",
    "adaptformer",
    "lora",
    "lora_mlp",
    "adapter",
    "ssf",
    "bias",
    "layer_norm",
    "vpt_shallow",
    "vpt_deep",
    "full",
]
# Elements of the tokens of images that a CPU trains together. Larger tensors do not fit into its caches, and the
# allocator returns them to the system, which clears the memory each time.
GROUP = 2**19
WITH_WIDTH = ("adaptformer", "lora", "lora_mlp", "adapter")


class AdaptedTransformer(nn.Module):
    """A timm vision transformer in which little is trained: adapters, prompts, or some parameters of its blocks.

    Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024 (LIFT). Everything else
    is frozen: the constructor sets `requires_grad` of all parameters.

    Args:
        backbone: see `PromptedTransformer`.
        adapter: what is trained in each adapted block:

            - `"adaptformer"`: an `AdaptFormer` parallel to the feed-forward network;
            - `"adapter"`: a `SequentialAdapter` after the feed-forward network;
            - `"lora"`: a `LoRA` of the query and the value projection;
            - `"lora_mlp"`: a `LoRA` of each linear layer of the feed-forward network;
            - `"ssf"`: an `SSF` after each linear layer and each normalisation of the block's inputs;
            - `"vpt_deep"`: prompts of each block; `"vpt_shallow"`: prompts that enter the first adapted block as tokens
              (Jia et al., "Visual Prompt Tuning", ECCV 2022);
            - `"bias"`, `"layer_norm"`, `"full"`: the biases, the normalisations or all parameters of the block itself;
            - `"none"`: nothing.
        width: width of the bottleneck, or rank. None means the authors' rule, `2 ** max(0, floor(log2(C / (2 L))))` for
            C classes and L blocks.
        blocks: number of adapted blocks, counted from the last; None means all.
        num_classes: number of classes C, for the rule above.
        length: number of prompts P.
        recompute: whether the backward pass computes the activations of the feed-forward networks again, which saves
            two fifths of the memory that autograd needs, and costs about an eighth more time.

    Attributes:
        backbone: the given backbone.
        adapters: for each adapted block, its adapters by what they adapt; see `run_block`.
        prompts: (number of adapted blocks, P, D) for `"vpt_deep"`, (1, P, D) for `"vpt_shallow"`, otherwise None.
        first: index of the first adapted block.

    Shapes: images (B, channels, H, W) -> features (B, D), pooled as in the backbone.

    Raises:
        ValueError: an argument is out of its range, or the backbone's blocks do not support adapters.
    """

    backbone: Any  # nn.Module's attributes have no types
    prompts: nn.Parameter | None

    def __init__(
        self,
        backbone: nn.Module,
        adapter: Adapter = "adaptformer",
        *,
        width: int | None = None,
        blocks: int | None = None,
        num_classes: int | None = None,
        length: int = 10,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_blocks(backbone)
        self.backbone = backbone
        depth = len(self.backbone.blocks)
        if adapter not in get_args(Adapter):
            raise SettingError("adapter", f"one of {', '.join(get_args(Adapter))}", adapter)
        if blocks is not None and not 1 <= blocks <= depth:
            raise SettingError("blocks", f"1 to {depth}, the number of blocks", blocks)
        if length < 1:
            raise SettingError("length", "at least 1", length)
        if width is None and num_classes is None and adapter in WITH_WIDTH:
            raise SettingError("width", "a width, or num_classes to choose one", width)
        for name, value in (("width", width), ("num_classes", num_classes)):
            if value is not None and value < 1:
                raise SettingError(name, "at least 1", value)
        adapted = 0 if adapter == "none" else depth if blocks is None else blocks
        self.adapter, self.recompute = adapter, recompute
        self.first = depth - adapted
        if width is None and num_classes is not None:
            width = default_width(num_classes, depth)
        self.adapters = nn.ModuleList(
            nn.ModuleDict(_block_adapters(block, adapter, width or 0)) for block in self.backbone.blocks[self.first :]
        )
        prompted = {"vpt_deep": adapted, "vpt_shallow": 1}.get(adapter)
        self.prompts = None if prompted is None else new_prompts(self.backbone, prompted, length)
        self.backbone.requires_grad_(False)
        for parameter in self.trained():
            parameter.requires_grad_(True)

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters that are trained."""
        yield from self.adapters.parameters()
        if self.prompts is not None:
            yield self.prompts
        for block in self.backbone.blocks[self.first :]:
            yield from _own_parameters(block, self.adapter)

    def below(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor] | None]:
        """Run the frozen part before the first adapted block, without gradient. Its results can be kept for later
        epochs.

        Returns:
            The tokens (B, N, D), or after the last block only those that the backbone pools; and the rotary embeddings
            of all blocks, or None if the backbone has none.
        """
        with torch.no_grad():
            tokens, ropes = embed(self.backbone, images)
            for index in range(self.first):
                tokens = self._run(index, tokens, ropes, pooled_tokens(self.backbone))
        return tokens, ropes

    def above(self, tokens: Tensor, ropes: Sequence[Tensor] | None) -> Tensor:
        """The features (B, D), from the results of `below`.

        Raises:
            ValueError: the backbone has rotary embeddings, but `ropes` is None.
        """
        check_ropes(self.backbone, ropes)
        of_images = ropes is not None and ropes[0].dim() > 3  # each image has dropped other patches
        if tokens.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling() or of_images:
            return self._above(tokens, ropes)
        groups = tokens.chunk(max(1, tokens.numel() // GROUP))
        return torch.cat([self._above(group, ropes) for group in groups])

    def _above(self, tokens: Tensor, ropes: Sequence[Tensor] | None) -> Tensor:
        queries = pooled_tokens(self.backbone)
        if self.adapter == "vpt_shallow" and self.prompts is not None:
            queries = tokens.shape[1] if queries is None else queries  # prompts are not pooled
            tokens = torch.cat([tokens, self.prompts.expand(tokens.shape[0], -1, -1)], 1)
        for index in range(self.first, len(self.backbone.blocks)):
            tokens = self._run(index, tokens, ropes, queries)
        return pooled_features(self.backbone, tokens)

    def forward(self, images: Tensor) -> Tensor:
        return self.above(*self.below(images))

    def _run(self, index: int, tokens: Tensor, ropes: Sequence[Tensor] | None, queries: int | None) -> Tensor:
        """Run a block; in the last one, only the leading tokens, as many as `queries`, are computed."""
        blocks, adapted = self.backbone.blocks, index - self.first
        prompts = [self.prompts[adapted]] if self.adapter == "vpt_deep" and self.prompts is not None else []
        return run_block(
            blocks[index],
            tokens,
            prompts=prompts if adapted >= 0 else [],
            adapters=cast(Adapters, self.adapters[adapted]) if adapted >= 0 else None,
            rope=None if ropes is None else ropes[index],
            queries=queries if index + 1 == len(blocks) else None,
            recompute=self.recompute,
        )


def default_width(num_classes: int, depth: int) -> int:
    """The authors' rule for the width of adapters: `2 ** max(0, floor(log2(C / (2 L))))` for C classes and L blocks.
    The adapters then have at most about as many parameters as the classifier."""
    return 2 ** max(0, (num_classes // (2 * depth)).bit_length() - 1)


def _block_adapters(block: Any, adapter: str, width: int) -> dict[str, nn.Module]:
    """New adapters of a block, by what they adapt; see `run_block`."""
    attention, dim = block.attn, block.attn.proj.out_features
    total = attention.proj.in_features
    if attention.qkv is None:
        projected = {place: getattr(attention, f"{place}_proj").out_features for place in PROJECTIONS}
    else:
        projected = dict.fromkeys(PROJECTIONS, total)
    linear = {name: layer for name, layer in block.mlp.named_children() if isinstance(layer, nn.Linear)}
    if adapter == "adaptformer":
        return {"parallel": AdaptFormer(dim, width)}
    if adapter == "adapter":
        return {"series": SequentialAdapter(dim, width)}
    if adapter == "lora":
        return {place: LoRA(dim, projected[place], width) for place in ("q", "v")}
    if adapter == "lora_mlp":
        return {name: LoRA(layer.in_features, layer.out_features, width) for name, layer in linear.items()}
    if adapter == "ssf":
        widths = {"norm1": dim, **projected, "proj": dim, "norm2": dim}
        widths |= {name: layer.out_features for name, layer in linear.items()}
        return {place: SSF(features) for place, features in widths.items()}
    return {}


def _own_parameters(block: nn.Module, adapter: str) -> Iterator[nn.Parameter]:
    """The parameters of the block itself that are trained."""
    if adapter == "full":
        yield from block.parameters()
    elif adapter == "bias":
        yield from (parameter for name, parameter in block.named_parameters() if name.endswith("bias"))
    elif adapter == "layer_norm":
        for module in block.modules():
            if isinstance(module, (nn.LayerNorm, nn.RMSNorm, RmsNorm)):
                yield from module.parameters()
