"""Q-formers, queries that read through cross-attention: GigaTok's way from a feature map to a sequence and back.

Shapes: B images, Q queries, M positions that are read, T tokens, g x g the feature map, D width, Z channels outside.
Source: Xiong et al. 2025, arXiv:2504.08736; a layer is a decoder layer of DETR (Carion et al. 2020, arXiv:2005.12872),
normalised before. Names of weights are GigaTok's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class QFormerConfig:
    """Architecture of a Q-former."""

    width: int
    """Width of a position, D."""
    n_layers: int
    """Layers."""
    n_heads: int
    """Attention heads."""
    channels: int
    """Channels of what goes in and comes out, Z."""
    n_tokens: int
    """Length of the 1-D sequence, T."""
    grid: int
    """Side of the feature map, g."""
    queries: str
    """What the queries start as; see `Encoder2Dto1D` and `Decoder1Dto2D`."""
    qk_norm: bool = False
    """Whether queries and keys are layer-normalised in each head."""


class Attention(nn.Module):
    """Multi-head attention, its three projections in one matrix: the weights of `nn.MultiheadAttention`."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(3 * width, width), std=0.02))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (_split_heads(F.linear(x, weight, bias), self.n_heads) for x, weight, bias in parts)
        return self.out_proj(_merge_heads(F.scaled_dot_product_attention(q, k, v)))


class NormedAttention(nn.Module):
    """Multi-head attention with a LayerNorm of each head's queries and keys."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.wo = nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // n_heads)
        self.k_norm = nn.LayerNorm(width // n_heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q = self.q_norm(_split_heads(self.q_proj(query), self.n_heads))
        k = self.k_norm(_split_heads(self.k_proj(key), self.n_heads))
        v = _split_heads(self.v_proj(value), self.n_heads)
        return self.wo(_merge_heads(F.scaled_dot_product_attention(q, k, v)))


class QFormerLayer(nn.Module):
    """Self-attention of the queries, attention to the memory, feed-forward: each normalised before and added.

    Positions are added to what attention compares, not to what it reads.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        attention = NormedAttention if config.qk_norm else Attention
        self.self_attn = attention(config.width, config.n_heads)
        self.multihead_attn = attention(config.width, config.n_heads)
        self.linear1 = nn.Linear(config.width, 4 * config.width)
        self.linear2 = nn.Linear(4 * config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.norm3 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, memory: Tensor, x_positions: Tensor, memory_positions: Tensor) -> Tensor:
        """Queries (B, Q, D) and memory (B, M, D), their positions (1, Q, D) and (1, M, D) -> (B, Q, D)."""
        h = self.norm1(x)
        placed = h + x_positions
        x = x + self.self_attn(placed, placed, h)
        h = self.norm2(x)
        x = x + self.multihead_attn(h + x_positions, memory + memory_positions, memory)
        return x + self.linear2(F.gelu(self.linear1(self.norm3(x))))


class _QFormer(nn.Module):
    """What both directions have: positions of the map (g², 1, D) and of the sequence (T, 1, D), layers, norms."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.positional_embedding = _vectors(config.grid**2, config.width)
        self.latent_token_positional_embedding = _vectors(config.n_tokens, config.width)
        self.ln_pre = nn.LayerNorm(config.channels)
        self.transformer = nn.ModuleList(QFormerLayer(config) for _ in range(config.n_layers))
        self.ln_post = nn.LayerNorm(config.width)


class Encoder2Dto1D(_QFormer):
    """A feature map (B, Z, g, g) -> a sequence (B, Z, 1, T).

    Queries start as `pooled`: means over ever finer blocks of the map; `mean`: of the whole map; `learned`.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__(config)
        self.encoder_embed = nn.Linear(config.channels, config.width)
        if config.queries == "learned":
            self.query_1d = _vectors(config.n_tokens, config.width)
        else:
            self.global_proj = nn.Linear(config.width, config.width)
        self.conv_out = nn.Conv2d(config.width, config.channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        memory = self.encoder_embed(self.ln_pre(features.flatten(2).transpose(1, 2)))  # (B, g², D)
        x = self._queries(memory)
        for layer in self.transformer:
            x = layer(x, memory, _rows(self.latent_token_positional_embedding), _rows(self.positional_embedding))
        return self.conv_out(self.ln_post(x).transpose(1, 2).unsqueeze(2))

    def _queries(self, memory: Tensor) -> Tensor:
        n_tokens, grid = self.config.n_tokens, self.config.grid
        if self.config.queries == "learned":
            return _rows(self.query_1d).expand(len(memory), -1, -1)
        if self.config.queries == "mean":
            return self.global_proj(memory.mean(dim=1, keepdim=True)).expand(-1, n_tokens, -1)
        return self.global_proj(pooled_pyramid(memory.transpose(1, 2).unflatten(2, (grid, grid)), n_tokens))


class Decoder1Dto2D(_QFormer):
    """A sequence (B, Z, 1, T) -> a feature map (B, Z, g, g).

    Queries start as `first`: the first token of the sequence; `last_level`: its second half, laid out as a map;
    `multi_level`: the mean of such maps of its first 2, 4, ... tokens; `learned`.
    """

    def __init__(self, config: QFormerConfig, distill_width: int | None) -> None:
        super().__init__(config)
        self.decoder_embed = nn.Linear(config.channels, config.width)
        if config.queries == "learned":
            self.q_2d = _vectors(config.grid**2, config.width)
        self.conv_out = nn.Conv2d(config.width, config.channels, 3, padding=1)
        if distill_width is not None:  # aligned features in training; kept so that files go in and out whole
            hidden = 4 * config.width
            layers = nn.Linear(config.width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, distill_width)
            self.distill_mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])

    def forward(self, sequence: Tensor) -> Tensor:
        memory = self.decoder_embed(self.ln_pre(sequence.flatten(2).transpose(1, 2)))  # (B, T, D)
        x = self._queries(memory)
        for layer in self.transformer:
            x = layer(x, memory, _rows(self.positional_embedding), _rows(self.latent_token_positional_embedding))
        grid = self.config.grid
        return self.conv_out(self.ln_post(x).transpose(1, 2).unflatten(2, (grid, grid)))

    def _queries(self, memory: Tensor) -> Tensor:
        grid = self.config.grid
        if self.config.queries == "learned":
            return _rows(self.q_2d).expand(len(memory), -1, -1)
        if self.config.queries == "first":
            return memory[:, :1].expand(-1, grid**2, -1)
        n_levels = self.config.n_tokens.bit_length() - 1
        if self.config.queries == "last_level":
            return _as_map(memory[:, -(2 ** (n_levels - 1)) :], n_levels - 1, grid)
        # Level 0 is the mean of two tokens; every later one starts at token 0 again, as in GigaTok.
        levels = [_as_map(memory[:, :2].mean(dim=1, keepdim=True), 0, grid)]
        levels += [_as_map(memory[:, : 2**level], level, grid) for level in range(1, n_levels)]
        return torch.stack(levels).sum(dim=0) / n_levels


def pooled_pyramid(features: Tensor, n_tokens: int) -> Tensor:
    """Means over blocks of a map (B, D, g, g), coarse to fine: 1 + 1 + 2 + 4 + ... = T of them, (B, T, D).

    Each level halves the blocks, first in width, then in height; the whole map comes twice.
    """
    groups = []
    for group in range(n_tokens.bit_length()):
        rows, columns = _blocks(max(group - 1, 0))
        height, width = features.shape[2] // rows, features.shape[3] // columns
        groups.append(F.avg_pool2d(features, (height, width)).flatten(2))
    return torch.cat(groups, dim=2).transpose(1, 2)


def _blocks(level: int) -> tuple[int, int]:
    """Rows and columns of the 2**level blocks of a level."""
    return 2 ** (level // 2), 2 ** ((level + 1) // 2)


def _as_map(tokens: Tensor, level: int, grid: int) -> Tensor:
    """The 2**level tokens of a level, each repeated over its block: (B, 2**level, D) -> (B, g², D)."""
    blocks = tokens.transpose(1, 2).unflatten(2, _blocks(level))
    return F.interpolate(blocks, size=(grid, grid), mode="nearest").flatten(2).transpose(1, 2)


def _split_heads(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _vectors(count: int, width: int) -> nn.Parameter:
    """Learned vectors as the files hold them, (count, 1, D)."""
    return nn.Parameter(nn.init.normal_(torch.empty(count, 1, width), std=width**-0.5))


def _rows(vectors: Tensor) -> Tensor:
    """(count, 1, D) -> (1, count, D)."""
    return vectors.transpose(0, 1)
