"""GigaTok's 1-D tokenizers: a VQGAN whose tokens are read from the feature map, and back into it, by Q-formers.

Shapes: B images, 3 x S x S pixels, Z channels between the parts, g x g the feature map, T tokens in an order of their
own (not a raster), E width of a code vector. Names of weights are the original's, so that its files load as they are.
Source: Xiong et al. 2025, arXiv:2504.08736; the pixel decoder's blocks are MAGVIT-v2's (Yu et al. 2023,
arXiv:2310.05737). Of GigaTok this is what encodes and decodes; its rotation trick changes gradients alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeprior.errors import InputError
from codeprior.tokenizers.folder import FolderTokenizer, Shapes
from codeprior.tokenizers.qformer import Decoder1Dto2D, Encoder2Dto1D, QFormerConfig
from codeprior.tokenizers.vqgan import Decoder, Encoder, VectorQuantizer, VQGANConfig, multipliers

# fmt: off
SIZES = {  # of a Q-former
    #         width  layers  heads
    "tiny":  (256,   4,      4),
    "small": (512,   6,      8),
    "base":  (768,   12,     12),
    "large": (1024,  24,     16),
    "xl":    (1280,  36,     20),
    "xxl":   (1536,  48,     24),
}
# fmt: on
_CHOICES = {
    "encoder": tuple(SIZES),
    "decoder": tuple(SIZES),
    "encoder_queries": ("pooled", "mean", "learned"),
    "decoder_queries": ("first", "last_level", "multi_level", "learned"),
}


@dataclass(frozen=True)
class GigaTokConfig:
    """Architecture of a GigaTok tokenizer; the defaults are those of every released one.

    Raises
    ------
    InputError
        If a choice is unknown, or the tokens are not as many as a grid that divides the feature map.
    """

    encoder: str
    """Size of the Q-former that makes the tokens, a name in `SIZES`."""
    decoder: str
    """Size of the Q-former that reads them."""
    codebook_size: int = 16384
    """Number of codes, V."""
    codebook_dim: int = 8
    """Width of a code vector, E."""
    normalize: bool = True
    """Whether codes are compared and read on the unit sphere."""
    n_tokens: int = 256
    """Tokens of an image, T: a power of 4."""
    z_channels: int = 256
    """Channels between the parts, Z."""
    encoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels of the convolutions at each resolution, in units of `channels`."""
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """The same, of the pixel decoder."""
    encoder_queries: str = "pooled"
    """What the encoder's queries start as: pooled, mean or learned."""
    decoder_queries: str = "first"
    """What the decoder's queries start as: first, last_level, multi_level or learned."""
    qk_norm: bool = False
    """Whether the Q-formers normalise queries and keys."""
    adaptive_norm: bool = True
    """Whether statistics of the decoder's input scale and shift each of its levels."""
    depth_to_space: bool = True
    """Whether the pixel decoder upsamples by depth-to-space, rather than by repeating pixels."""
    attention: bool = False
    """Whether the convolutions have self-attention at the lowest resolution."""
    distill_width: int | None = 768
    """Output of the head that training aligned with DINOv2 (unused here); None where the weights have none."""
    channels: int = 128
    """Channels at full resolution."""
    image_size: int = 256
    """Side of the images, pixels: the only one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder_multipliers", tuple(self.encoder_multipliers))
        object.__setattr__(self, "decoder_multipliers", tuple(self.decoder_multipliers))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)}")
        for name in ("codebook_size", "codebook_dim", "z_channels", "channels", "image_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        side = math.isqrt(max(self.n_tokens, 0))
        if side < 2 or side**2 != self.n_tokens or side.bit_count() != 1 or self.grids[0] % side:
            most = self.grids[0] ** 2
            raise InputError(
                f"n_tokens must be a power of 4 that divides the feature map's {most}, got {self.n_tokens}"
            )

    @property
    def grids(self) -> tuple[int, int]:
        """Side of the feature map, g, in the encoder and in the decoder."""
        levels = len(self.encoder_multipliers), len(self.decoder_multipliers)
        return self.image_size // 2 ** (levels[0] - 1), self.image_size // 2 ** (levels[1] - 1)

    def cnn(self, part: str) -> VQGANConfig:
        """The convolutions of the "encoder" or the "decoder"."""
        multipliers = self.encoder_multipliers if part == "encoder" else self.decoder_multipliers
        return VQGANConfig(self.channels, multipliers, 2, 3, self.z_channels, attention=self.attention)

    def qformer(self, part: str) -> QFormerConfig:
        """The Q-former of the "encoder" or the "decoder"."""
        encodes = part == "encoder"
        queries = self.encoder_queries if encodes else self.decoder_queries
        size = SIZES[self.encoder if encodes else self.decoder]
        grid = self.grids[0 if encodes else 1]
        return QFormerConfig(*size, self.z_channels, self.n_tokens, grid, queries, self.qk_norm)


class DepthToSpace(nn.Module):
    """Twice the side: a 3x3 convolution to four times the channels, each quarter of them one pixel of every 2x2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        quarters = self.conv1(x).unflatten(1, (2, 2, -1))  # (B, rows, columns, C, h, w); pixel_shuffle has C first
        return quarters.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class AdaptiveNorm(nn.Module):
    """A GroupNorm whose scale and shift are linear in the spread and the mean of the decoder's input (B, Z, g, g)."""

    def __init__(self, z_channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(groups, width, eps=1e-6, affine=False)
        self.gamma = nn.Linear(z_channels, width)
        self.beta = nn.Linear(z_channels, width)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale = self.gamma((z.var(dim=(2, 3)) + self.gn.eps).sqrt())
        return scale[..., None, None] * self.gn(x) + self.beta(z.mean(dim=(2, 3)))[..., None, None]


class PixelEncoder(Encoder):
    """LlamaGen's encoder; without attention GigaTok numbers its middle blocks 0 and 1."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__(config)
        self.mid = _without_gaps(self.mid)


class PixelDecoder(Decoder):
    """LlamaGen's decoder with the upsampling and the norms of MAGVIT-v2."""

    def __init__(self, config: VQGANConfig, *, adaptive_norm: bool, depth_to_space: bool) -> None:
        super().__init__(config)
        self.mid = _without_gaps(self.mid)
        widths = config.widths[::-1]
        if depth_to_space:
            for level, width in zip(self.conv_blocks[:-1], widths, strict=False):
                level.upsample = DepthToSpace(width)
        self.adaptive = nn.ModuleList()
        if adaptive_norm:
            inputs = [widths[0], *widths[:-1]]
            self.adaptive.extend(AdaptiveNorm(config.z_channels, width, config.norm_groups) for width in inputs)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in self.mid:
            x = block(x)
        for number, level in enumerate(self.conv_blocks):
            if self.adaptive:
                x = self.adaptive[number](x, z)
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class GigaTok(nn.Module):
    """GigaTok's tokenizer, without its training losses."""

    def __init__(self, config: GigaTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PixelEncoder(config.cnn("encoder"))
        self.s2to1encoder = Encoder2Dto1D(config.qformer("encoder"))
        self.s1to2decoder = Decoder1Dto2D(config.qformer("decoder"), config.distill_width)
        self.decoder = PixelDecoder(
            config.cnn("decoder"), adaptive_norm=config.adaptive_norm, depth_to_space=config.depth_to_space
        )
        self.quantize = VectorQuantizer(config.codebook_size, config.codebook_dim, normalize=config.normalize)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] -> what the quantizer sees, (B, E, 1, T), not normalised."""
        return self.quant_conv(self.s2to1encoder(self.encoder(images)))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] -> codes int64 (B, T)."""
        return self.quantize.codes(self.features(images)).squeeze(1)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Code vectors as the quantizer reads them, (B, E, 1, T) -> images (B, 3, S, S)."""
        return self.decoder(self.s1to2decoder(self.post_quant_conv(vectors)))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (B, T) -> images (B, 3, S, S), not clamped."""
        return self.decode_vectors(self.quantize.lookup(codes.unsqueeze(1)))


class GigaTokTokenizer(FolderTokenizer):
    """A GigaTok model as a tokenizer; see `Tokenizer`. Its grid is only a way to count the tokens."""

    family: ClassVar[str] = "gigatok"
    config_class: ClassVar[type[Any]] = GigaTokConfig
    model_class: ClassVar[type[nn.Module]] = GigaTok

    @classmethod
    def identify(cls, shapes: Shapes) -> GigaTokConfig | None:
        """The architecture of one of GigaTok's files of 1-D tokenizers; the 2-D ones have LlamaGen's names.

        What leaves no trace in the weights is as in every released tokenizer: pooled queries, those of the decoder the
        first token, codes on the unit sphere. A YAML says it; see `gigatok_files.read_yaml`.
        """
        if _MARK not in shapes:
            return None
        try:
            return _identify(shapes)
        except InputError:
            raise
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"not the whole weights of GigaTok's 1-D tokenizer: {error} is missing or has another shape"
            ) from None

    def grid(self, image_size: int) -> tuple[int, int]:
        """As many rows as columns; the tokens have an order but no places."""
        if image_size != self.image_size:
            size = self.image_size
            raise InputError(f"this tokenizer takes images of {size} x {size} pixels only, got {image_size}")
        side = math.isqrt(self.model.config.n_tokens)
        return side, side

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> codes int64 (B, T)."""
        for side in images.shape[2:]:
            self.grid(side)
        return self.model.encode(images)

    @torch.inference_mode()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, T), a grid of T places in any shape -> images (B, 3, S, S), not clamped."""
        n_tokens = self.model.config.n_tokens
        if codes.shape[1] != n_tokens or math.prod(grid) != n_tokens:
            raise InputError(f"this tokenizer has {n_tokens} tokens an image, got {codes.shape[1]} on a grid of {grid}")
        return self.model.decode(codes)


_MARK = "s2to1encoder.encoder_embed.weight"  # only 1-D GigaTok tokenizers have it


def _identify(shapes: Shapes) -> GigaTokConfig:
    size_of_width = {size[0]: name for name, size in SIZES.items()}
    channels, codebook = shapes["encoder.conv_in.weight"][0], shapes["quantize.embedding.weight"]
    encoder, decoder = (multipliers(shapes, part, channels) for part in ("encoder", "decoder"))
    grid = math.isqrt(shapes["s2to1encoder.positional_embedding"][0])
    distill = shapes.get("s1to2decoder.distill_mlp.4.bias")
    return GigaTokConfig(
        encoder=size_of_width[shapes["s2to1encoder.encoder_embed.weight"][0]],
        decoder=size_of_width[shapes["s1to2decoder.decoder_embed.weight"][0]],
        codebook_size=codebook[0],
        codebook_dim=codebook[1],
        n_tokens=shapes["s2to1encoder.latent_token_positional_embedding"][0],
        z_channels=shapes["quant_conv.weight"][1],
        encoder_multipliers=encoder,
        decoder_multipliers=decoder[::-1],
        encoder_queries="learned" if "s2to1encoder.query_1d" in shapes else "pooled",
        decoder_queries="learned" if "s1to2decoder.q_2d" in shapes else "first",
        qk_norm="s2to1encoder.transformer.0.self_attn.q_norm.weight" in shapes,
        adaptive_norm="decoder.adaptive.0.gamma.weight" in shapes,
        depth_to_space="decoder.conv_blocks.0.upsample.conv1.weight" in shapes,
        attention="encoder.mid.1.q.weight" in shapes,
        distill_width=distill[0] if distill else None,
        channels=channels,
        image_size=grid * 2 ** (len(encoder) - 1),
    )


def _without_gaps(blocks: nn.ModuleList) -> nn.ModuleList:
    return nn.ModuleList(block for block in blocks if not isinstance(block, nn.Identity))


# fmt: off
PRESETS = {                                             # parameters     rFID, ImageNet 256 px, as published
    "GigaTok-S-S":    GigaTokConfig("small", "small"),  # 136,073,227    1.01
    "GigaTok-S-B":    GigaTokConfig("small", "base"),   # 232,399,627    0.89
    "GigaTok-B-L":    GigaTokConfig("base", "large"),   # 621,637,131    0.81; 0.51 with the DINO discriminator
    "GigaTok-XL-XXL": GigaTokConfig("xl", "xxl"),       # 2,893,970,443  0.79
}
# fmt: on
