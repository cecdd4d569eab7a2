"""A masked autoencoder for pre-training a vision transformer."""

import torch
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.errors import InputError, SettingError


class MaskedAutoencoder(nn.Module):
    """Pre-trains an encoder by reconstructing masked patches.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022: the encoder processes the visible patches
    of an image, and a small decoder predicts the pixels of the masked ones. The loss is the mean squared error on the
    masked patches. Unlike in the paper, the position embedding of the encoder is learned, as in timm.

    Args:
        encoder: a plain `timm` vision transformer without dropout; its head and pooling are not used.
        mask_ratio: fraction of masked patches, in (0, 1); their number is rounded.
        decoder_dim: width of the decoder, a multiple of 4 and of `decoder_heads`.
        decoder_depth: number of blocks of the decoder.
        decoder_heads: number of attention heads of the decoder.
        norm_pixels: whether the target pixels are normalised by the mean and standard deviation of their patch.

    Shapes: images (B, channels, H, W) of the encoder's size, any float dtype -> the loss, a float32 scalar. An image
    has L patches in row-major order, of which M are masked and V = L - M visible; a patch has P values.

    Raises:
        ValueError: an argument is out of its range, or the encoder is another kind of network.
    """

    positions: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        mask_ratio: float = 0.75,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
        norm_pixels: bool = True,
    ) -> None:
        super().__init__()
        # A subclass may extend the forward pass, and another stem may leak masked pixels into visible tokens.
        if type(encoder) is not VisionTransformer or not isinstance(encoder.patch_embed, PatchEmbed):
            raise InputError(f"encoder: expected a plain timm VisionTransformer, got {type(encoder).__name__}")
        size, patch = encoder.patch_embed.img_size, encoder.patch_embed.patch_size
        if any(s % p for s, p in zip(size, patch, strict=True)):
            raise InputError(f"encoder: expected an image size that is a multiple of the patch's, {patch}, got {size}")
        if not 0 < mask_ratio < 1:
            raise SettingError("mask_ratio", "a number in (0, 1)", mask_ratio)
        if decoder_heads < 1:
            raise SettingError("decoder_heads", "at least 1", decoder_heads)
        if decoder_dim < 1 or decoder_dim % 4 or decoder_dim % decoder_heads:
            expected = f"a multiple of 4 and of the {decoder_heads} heads"
            raise SettingError("decoder_dim", expected, decoder_dim)
        if decoder_depth < 1:
            raise SettingError("decoder_depth", "at least 1", decoder_depth)
        patches = encoder.patch_embed.num_patches
        self.masked = round(mask_ratio * patches)
        if not 0 < self.masked < patches:
            raise InputError(
                f"{mask_ratio} masks {self.masked} of {patches} patches; expected some but not all", name="mask_ratio"
            )
        values = patch[0] * patch[1] * encoder.in_chans
        if norm_pixels and values < 2:
            raise InputError("expected false, since patches have only one value", name="norm_pixels")
        self.encoder = encoder
        self.norm_pixels = norm_pixels
        self.embed = nn.Linear(encoder.embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        grid = list(encoder.patch_embed.grid_size)
        self.register_buffer("positions", build_sincos2d_pos_embed(grid, decoder_dim), persistent=False)
        self.decoder = nn.Sequential(
            *(Block(decoder_dim, decoder_heads, qkv_bias=True) for _ in range(decoder_depth)), nn.LayerNorm(decoder_dim)
        )
        self.pixels = nn.Linear(decoder_dim, values)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.embed, *self.decoder.modules(), self.pixels):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """The names of parameters without weight decay, for timm's optimiser factory."""
        return {"mask_token", *(f"encoder.{name}" for name in self.encoder.no_weight_decay())}

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the indices of visible (B, V) and masked (B, M) patches from torch's global generator."""
        patches = self.encoder.patch_embed.num_patches
        order = torch.rand(len(images), patches, device=images.device).argsort(1)
        return order[:, self.masked :], order[:, : self.masked]

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Encode the visible patches: tokens (B, prefix + V, D), with the class and register tokens first."""
        encoder = self.encoder
        if images.shape[1:] != (encoder.in_chans, *encoder.patch_embed.img_size):
            expected = f"(B, {encoder.in_chans}, {', '.join(map(str, encoder.patch_embed.img_size))})"
            raise ValueError(f"images: expected shape {expected}, got {tuple(images.shape)}")
        tokens = encoder._pos_embed(encoder.patch_embed(images))
        prefix, patches = tokens[:, : encoder.num_prefix_tokens], tokens[:, encoder.num_prefix_tokens :]
        shown = torch.take_along_dim(patches, visible[..., None], dim=1)
        tokens = encoder.blocks(encoder.norm_pre(torch.cat([prefix, shown], dim=1)))
        return encoder.fc_norm(encoder.norm(tokens))  # one of the two norms is an identity

    def decode(self, latent: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predict the values (B, M, P) of the masked patches from the tokens of `encode`."""
        tokens = self.embed(latent)
        prefix = self.encoder.num_prefix_tokens
        hidden = self.mask_token.to(tokens.dtype).expand(*masked.shape, -1)
        positions = self.positions[torch.cat([visible, masked], dim=1)].to(tokens.dtype)
        # attention is permutation-equivariant, so the visible patches can precede the masked ones
        patches = torch.cat([tokens[:, prefix:], hidden], dim=1) + positions
        decoded = self.decoder(torch.cat([tokens[:, :prefix], patches], dim=1))
        return self.pixels(decoded[:, -masked.shape[1] :])

    def target(self, images: Tensor, masked: Tensor) -> Tensor:
        """The target of `decode`, float32 (B, M, P), with the values of a patch ordered by channel, row and column."""
        patch = self.encoder.patch_embed.patch_size
        patches = F.unfold(images.float(), patch, stride=patch).transpose(1, 2)
        patches = torch.take_along_dim(patches, masked[..., None], dim=1)
        if not self.norm_pixels:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def forward(self, images: Tensor) -> Tensor:
        visible, masked = self.draw(images)
        prediction = self.decode(self.encode(images, visible), visible, masked)
        return F.mse_loss(prediction.float(), self.target(images, masked))
