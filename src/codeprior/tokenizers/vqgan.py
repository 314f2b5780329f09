"""LlamaGen's VQGAN: its layers, its names of weights, its quantizer; one class, sizes in the table at the end.

Shapes: B images, C channels, H x W pixels, h x w tokens, V codes, E width of a code vector, N = B·h·w.
Source: Sun et al. 2024, arXiv:2406.06525, which follows Esser et al. 2021, arXiv:2012.09841.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeprior.errors import InputError
from codeprior.tokenizers.folder import FolderTokenizer, Shapes


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN."""

    channels: int
    """Channels at full resolution."""
    multipliers: tuple[int, ...]
    """Channels at each resolution, in units of `channels`; each level but the last halves the image."""
    res_blocks: int
    """Residual blocks a level in the encoder."""
    decoder_res_blocks: int
    """Residual blocks a level in the decoder."""
    z_channels: int
    """Channels between the convolutions and the quantizer."""
    codebook_size: int = 16384
    """Number of codes, V."""
    codebook_dim: int = 8
    """Width of a code vector, E."""
    attention: bool = True
    """Whether there is self-attention at the lowest resolution."""
    norm_groups: int = 32
    """Groups of a GroupNorm."""
    normalize: bool = True
    """Whether codes are compared and read on the unit sphere."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))

    @property
    def downsample(self) -> int:
        """Pixels a token, along each side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from full resolution down."""
        return [self.channels * multiplier for multiplier in self.multipliers]


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut, which is 1x1 where the width changes."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in, groups)
        self.conv1 = _conv3(width_in, width_out)
        self.norm2 = _norm(width_out, groups)
        self.conv2 = _conv3(width_out, width_out)
        self.nin_shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_silu(self.norm1(x)))
        h = self.conv2(_silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention of one head over all positions, with a residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v))  # (B, hw, C)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Half the side: a strided 3x3 convolution, padded at the right and the lower edge only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: each pixel repeated, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution: residual, each followed by attention where there is any; then a change of size."""

    def __init__(self, width_in: int, width_out: int, n_blocks: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        widths = [width_in] + [width_out] * n_blocks
        self.res = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(width_out, groups) for _ in range(n_blocks if attention else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> features (B, z_channels, h, w)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = _conv3(3, config.channels)
        self.conv_blocks = nn.ModuleList()
        for number, (width_in, width) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            attention = config.attention and number == last
            level = Level(width_in, width, config.res_blocks, config.norm_groups, attention=attention)
            if number != last:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
        self.mid = _middle(widths[-1], config)
        self.norm_out = _norm(widths[-1], config.norm_groups)
        self.conv_out = _conv3(widths[-1], config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(_silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) -> images (B, 3, H, W)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        last = len(widths) - 1
        self.conv_in = _conv3(config.z_channels, widths[0])
        self.mid = _middle(widths[0], config)
        self.conv_blocks = nn.ModuleList()
        for number, (width_in, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            attention = config.attention and number == 0
            level = Level(width_in, width, config.decoder_res_blocks, config.norm_groups, attention=attention)
            if number != last:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
        self.norm_out = _norm(widths[-1], config.norm_groups)
        self.conv_out = _conv3(widths[-1], 3)

    def forward(self, z: Tensor) -> Tensor:
        z = self.conv_in(z)
        for block in self.mid:
            z = block(z)
        for level in self.conv_blocks:
            z = level(z)
        return self.conv_out(_silu(self.norm_out(z)))


class VectorQuantizer(nn.Module):
    """Nearest code; unless `normalize` is off, vectors are l2-normalised when looked up and when read."""

    def __init__(self, codebook_size: int, codebook_dim: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        self.embedding.weight.data = self._space(self.embedding.weight.data)

    def codes(self, z: Tensor) -> Tensor:
        """Features (B, E, h, w) -> codes int64 (B, h, w); of equally near ones the lowest."""
        z = self._space(z.float().permute(0, 2, 3, 1))
        vectors = self._space(self.embedding.weight.float())
        flat = z.reshape(-1, z.shape[-1])
        # On the sphere |z - e|^2 = 2 - 2 z.e; LlamaGen keeps the norms, which are 1 up to rounding.
        sqdist = flat.square().sum(1, keepdim=True) + vectors.square().sum(1) - 2 * flat @ vectors.T
        return sqdist.argmin(dim=1).unflatten(0, z.shape[:3])

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> code vectors (B, E, h, w), of unit length if normalised."""
        return self._space(self.embedding(codes)).permute(0, 3, 1, 2)

    def _space(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.normalize else vectors


class VQGAN(nn.Module):
    """LlamaGen's tokenizer, without its training losses."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config.codebook_size, config.codebook_dim, normalize=config.normalize)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> what the quantizer sees, (B, E, h, w), not normalised."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> codes int64 (B, h, w)."""
        return self.quantize.codes(self.features(images))

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Code vectors of unit length (B, E, h, w) -> images (B, 3, H, W)."""
        return self.decoder(self.post_quant_conv(vectors))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (B, h, w) -> images (B, 3, H, W), not clamped."""
        return self.decode_vectors(self.quantize.lookup(codes))


class VQGANTokenizer(FolderTokenizer):
    """A VQGAN as a tokenizer; see `Tokenizer`. It takes images of any size that its levels halve evenly."""

    family: ClassVar[str] = "vqgan"
    config_class: ClassVar[type[Any]] = VQGANConfig
    model_class: ClassVar[type[nn.Module]] = VQGAN

    @classmethod
    def identify(cls, shapes: Shapes) -> VQGANConfig | None:
        """The architecture of one of LlamaGen's files, or of those who kept its names (IAR, Janus's tokenizer)."""
        if not any(name.startswith("decoder.conv_blocks.") for name in shapes):
            return None
        try:
            channels = shapes["encoder.conv_in.weight"][0]
            codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
            return VQGANConfig(
                channels=channels,
                multipliers=multipliers(shapes, "encoder", channels),
                res_blocks=_n_blocks(shapes, "encoder"),
                decoder_res_blocks=_n_blocks(shapes, "decoder"),
                z_channels=shapes["quant_conv.weight"][1],
                codebook_size=codebook_size,
                codebook_dim=codebook_dim,
                attention="encoder.mid.1.q.weight" in shapes,
            )
        except InputError:
            raise
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"not the whole weights of LlamaGen's tokenizer: {error} is missing or has another shape"
            ) from None

    def grid(self, image_size: int) -> tuple[int, int]:
        """A token for every block of pixels."""
        downsample = self.model.config.downsample
        if image_size < 1 or image_size % downsample:
            raise InputError(f"image_size must be a multiple of {downsample}, got {image_size}")
        return image_size // downsample, image_size // downsample

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> codes int64 (B, T)."""
        for side in images.shape[2:]:
            self.grid(side)
        return self.model.encode(images).flatten(1)

    @torch.inference_mode()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, T) on a grid of (h, w) -> images (B, 3, H, W), not clamped."""
        return self.model.decode(codes.unflatten(1, grid))


def multipliers(shapes: Shapes, part: str, channels: int) -> tuple[int, ...]:
    """Channels of each level of the "encoder" or the "decoder", in units of `channels`, in the order of its levels."""
    widths: list[int] = []
    while (name := f"{part}.conv_blocks.{len(widths)}.res.0.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    return tuple(width // channels for width in widths)


def _n_blocks(shapes: Shapes, part: str) -> int:
    return next(n for n in range(len(shapes)) if f"{part}.conv_blocks.0.res.{n}.conv1.weight" not in shapes)


def _silu(x: Tensor) -> Tensor:
    """x sigmoid(x); in the place of x, always a norm's fresh output here, where no gradient will ask for it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


def _conv3(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1)


def _middle(width: int, config: VQGANConfig) -> nn.ModuleList:
    groups = config.norm_groups
    attention = AttnBlock(width, groups) if config.attention else nn.Identity()
    return nn.ModuleList([ResnetBlock(width, width, groups), attention, ResnetBlock(width, width, groups)])


def preset(name: str, codebook_size: int | None = None, codebook_dim: int | None = None) -> VQGANConfig:
    """An architecture of the table, with another codebook if asked for.

    Raises
    ------
    InputError
        If the table has no such name.
    """
    if name not in PRESETS:
        raise InputError(f"tokenizer must be one of {', '.join(PRESETS)}, got {name}")
    config = PRESETS[name]
    return replace(
        config,
        codebook_size=codebook_size or config.codebook_size,
        codebook_dim=codebook_dim or config.codebook_dim,
    )


# fmt: off
PRESETS = {  # parameters with a codebook of 16384 x 8: 71,883,403 and 70,109,835 for LlamaGen's two
    #                         channels  multipliers      blocks  decoder  z
    "VQ-16":     VQGANConfig(128, (1, 1, 2, 2, 4), 2, 3, 256),
    "VQ-8":      VQGANConfig(128, (1, 2, 2, 4),    2, 3, 256),
    "VQ-4-tiny": VQGANConfig(16,  (1, 2, 4),       1, 1, 64, 256, attention=False, norm_groups=8),
}
# fmt: on
