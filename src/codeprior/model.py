"""The transformer: LlamaGen's, with its state-dict names and its numbers, and variants of it.

Shapes: B batch, T tokens, P slots of the condition (1 for a class, 120 for a caption), S positions (the condition, then
tokens), V output vocabulary, G clusters, D width, N heads, H head width, F feed-forward width. A vocabulary is the
tokenizer's codes or the clusters of a prior; the model does not know which.

The variants: conditioned by captions in place of classes (LlamaGen's t2i); learned positions in place of rotary ones,
for tokens that lie on no grid (GigaTok's gpt_1d); without the causal mask and with an output vocabulary of its own it
refines clusters to tokens, all positions at once (CTF); with a factorised output it predicts a cluster and the token
within it from one state.

LlamaGen: Sun et al. 2024, arXiv:2406.06525. GigaTok: Xiong et al. 2025, arXiv:2504.08736. CTF: "Improving
Autoregressive Image Generation through Coarse-to-Fine Token Prediction", arXiv:2503.16194.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from codeprior.attention import attention, beats_kernel
from codeprior.captions import Captions
from codeprior.errors import InputError
from codeprior.losses import factorised_log_probs
from codeprior.products import Linear, eager_on_cpu, trains_on_cpu


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a transformer.

    Raises
    ------
    InputError
        If a size is not positive, or `dim` is not a multiple of 4 `n_heads` (rotary positions: pairs for both axes).
    """

    dim: int
    """Width D."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Attention heads N."""
    vocab_size: int
    """Number of tokens, or of clusters, that go in; and come out, unless `output_size` says otherwise."""
    n_classes: int
    """Number of classes; the null class of guidance is one more. 0 where captions are the condition."""
    grid: tuple[int, int]
    """Rows and columns of tokens."""
    ffn_multiple: int = 256
    """The feed-forward width is 8/3 D, rounded up to a multiple of this."""
    output_size: int | None = None
    """Number of tokens that come out, V, where it differs from `vocab_size`."""
    causal: bool = True
    """Whether a position sees only those before it, and predicts the next token; else it sees all, and its own."""
    n_clusters: int | None = None
    """Clusters G of a factorised output; None for the plain one, V logits."""
    token_dropout: float = 0.1
    """Of the input embeddings."""
    resid_dropout: float = 0.1
    """Of the attention's output."""
    ffn_dropout: float = 0.1
    """Of the feed-forward's output."""
    drop_path: float = 0.0
    """Share of the images that skip the attention, and the feed-forward, of the last block; less in those before it."""
    null_class: bool = True
    """Whether there is an embedding for "no class"; guidance needs it."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How a token's place is told: rows and columns turn queries and keys, or a vector a place is added."""
    qk_norm: bool = False
    """Whether queries and keys are layer-normalised in each head."""
    caption_dim: int | None = None
    """Numbers that a text encoder gives for each token of a caption; None where classes are the condition."""
    caption_slots: int = 120
    """Most tokens of a caption."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        condition = self.n_classes if self.caption_dim is None else min(self.caption_dim, self.caption_slots)
        sizes = (self.dim, self.n_layers, self.n_heads, self.vocab_size, condition, self.ffn_multiple, *self.grid)
        if len(self.grid) != 2 or min(*sizes, self.n_outputs) < 1:
            raise InputError(f"every size of a model must be positive and the grid (rows, columns), got {self}")
        if self.caption_dim is not None and (self.n_classes or not self.causal):
            raise InputError("a model with captions has no classes, and its tokens are causal")
        if self.positions not in ("rotary", "learned"):
            raise InputError(f"positions must be rotary or learned, got {self.positions}")
        if self.n_clusters is not None and not 1 <= self.n_clusters <= self.n_outputs:
            raise InputError(f"n_clusters must be between 1 and the {self.n_outputs} tokens, got {self.n_clusters}")
        if self.dim % (4 * self.n_heads):
            raise InputError(f"dim must be a multiple of 4 n_heads = {4 * self.n_heads}, got {self.dim}")
        for name in ("token_dropout", "resid_dropout", "ffn_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")

    @property
    def n_outputs(self) -> int:
        """Output vocabulary V."""
        return self.vocab_size if self.output_size is None else self.output_size

    @property
    def n_tokens(self) -> int:
        """Tokens of an image, T."""
        return self.grid[0] * self.grid[1]

    @property
    def n_slots(self) -> int:
        """Positions of the condition, P: one for a class."""
        return 1 if self.caption_dim is None else self.caption_slots

    @property
    def head_dim(self) -> int:
        """Width of a head, H."""
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward, F."""
        return -(-int(8 * self.dim / 3) // self.ffn_multiple) * self.ffn_multiple


def rotation_table(grid: tuple[int, int], head_dim: int, n_slots: int = 1, base: float = 10000.0) -> Tensor:
    """Cosines and sines of 2-D rotary positions.

    The first half of a head's pairs turns with the row, the second half with the column. The condition's slots have
    cos = sin = 0, not the identity: it zeroes their queries and keys, so that every token gives them the attention
    logit 0. LlamaGen's weights were trained like this.

    Returns
    -------
    table : Tensor of shape (P + T, H / 2, 2), float32
    """
    frequencies = 1.0 / base ** (torch.arange(0, head_dim // 2, 2, device="cpu").float() / (head_dim // 2))
    rows, columns = (torch.outer(torch.arange(n, device="cpu").float(), frequencies) for n in grid)
    height, width = grid
    angles = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(0, 1)
    return torch.cat([torch.zeros_like(table[:1]).expand(n_slots, -1, -1), table])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn adjacent pairs of each head: x (B, S, ..., H) by table (S, H / 2, 2), in float32.

    A pair is a complex number here: on CPU five times as fast as the products of cosines and sines written out, which
    torch's compiler, however, makes one with what is around them.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    turns = table.view(1, x.shape[1], *[1] * (x.ndim - 3), *table.shape[1:])
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).type_as(x)


def visible(padding: Tensor, start: int, n_new: int) -> Tensor:
    """Which positions each of `n_new` positions from `start` on sees: (B, 1, n_new, start + n_new) bool.

    Itself and those before it, but none of the first `padding` (B,), slots that a caption left empty; these see
    themselves, for an attention over nothing has no value.
    """
    key = torch.arange(start + n_new, device=padding.device)
    query = key[start:, None]
    return ((key <= query) & (key >= padding[:, None, None]) | (key == query))[:, None]


class KVCache:
    """Keys and values of the positions seen so far, one pair a layer: the only thing here that is filled in place.

    `padding` (B,) is how many of the first positions hold nothing, where a condition has such.
    """

    def __init__(self, config: ModelConfig, batch_size: int, *, device: torch.device, dtype: torch.dtype) -> None:
        n_positions = config.n_slots + config.n_tokens
        shape = (config.n_layers, batch_size, config.n_heads, n_positions, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0
        self.padding: Tensor | None = None

    def advance(self, n_new: int, padding: Tensor | None = None) -> tuple[slice | Tensor, Tensor | None]:
        """Make room for the next positions: which these are, and what each of them sees, if not all before it."""
        if self.length and n_new > 1:
            raise ValueError("a cache that holds something is extended by one position at a time")
        start, self.length = self.length, self.length + n_new
        self.padding = self.padding if padding is None else padding
        return slice(start, self.length), None if self.padding is None else visible(self.padding, start, n_new)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store keys and values (B, N, S, H) where room was just made; what their queries find among all so far."""
        new, seen = slice(self.length - k.shape[2], self.length), slice(self.length)
        self.keys[layer, :, :, new] = k
        self.values[layer, :, :, new] = v
        keys, values = self.keys[layer, :, :, seen], self.values[layer, :, :, seen]
        is_causal = mask is None and q.shape[2] > 1
        y = F.scaled_dot_product_attention(q.to(keys.dtype), keys, values, attn_mask=mask, is_causal=is_causal)
        return y.type_as(q)

    def keep(self, batch_size: int) -> None:
        """Forget all but the first sequences of the batch."""
        self.keys, self.values = self.keys[:, :batch_size], self.values[:, :batch_size]
        self.padding = None if self.padding is None else self.padding[:batch_size]


class RMSNorm(nn.Module):
    """Divide by the root mean square, in float32; then scale."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if trains_on_cpu(x) and x.dtype == torch.float32:
            y: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
            return y
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).type_as(x) * self.weight


class _RMSNorm(torch.autograd.Function):
    """The same for a training step on a CPU, where torch has no kernel for it: in fewer passes, both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, weight, scale = ctx.saved_tensors
        weight_grad = (grad * normed).flatten(0, -2).sum(0)
        grad = grad * weight
        along = torch.linalg.vecdot(grad, normed).unsqueeze(-1).div_(normed.shape[-1])
        return (grad - normed * along).mul_(scale), weight_grad, None


class Dropout(nn.Module):
    """In training, leave out a share of the numbers, and scale the others up.

    On a CPU by 16 random bits a number, four numbers a draw: torch's own draws once for each, in five times the time.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        if not eager_on_cpu(x):
            return F.dropout(x, self.share)
        n_dropped = min(round(self.share * 2**16), 2**16 - 1)  # of the 2^16 values of the bits
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= n_dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - n_dropped))


class DropPath(nn.Module):
    """In training, leave a branch out for a share of the images, and scale it up for the others (stochastic depth)."""

    kept: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.drops = share > 0
        # a tensor: with a number that differs from block to block, each would be compiled anew
        self.register_buffer("kept", torch.tensor(1 - share, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drops:
            return x
        kept = torch.bernoulli(self.kept.expand(len(x), *[1] * (x.ndim - 1)))
        return x * (kept / self.kept).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, causal or not, with rotary positions if any."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_shape, self.causal = layer, (config.n_heads, config.head_dim), config.causal
        self.wqkv = Linear(config.dim, 3 * config.dim)
        self.wo = Linear(config.dim, config.dim)
        self.dropout = Dropout(config.resid_dropout)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm, self.k_norm = nn.LayerNorm(config.head_dim), nn.LayerNorm(config.head_dim)

    def forward(self, x: Tensor, table: Tensor | None, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        qkv = self.wqkv(x).unflatten(-1, (3, *self.head_shape))  # (B, S, 3, N, H)
        if cache is None and mask is None and self.q_norm is None and beats_kernel(x, causal=self.causal):
            return self.dropout(self.wo(attention(qkv, table, causal=self.causal)))
        qk, v = qkv.split((2, 1), dim=2)  # one pass backward, where slices are two, and a sum
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.stack([self.q_norm(qk[:, :, 0]), self.k_norm(qk[:, :, 1])], dim=2)
        q, k = (qk if table is None else rotate(qk, table)).transpose(1, 3).unbind(2)  # (B, N, S, H)
        v = v.transpose(1, 3).squeeze(2)
        if cache is not None:
            y = cache.attend(self.layer, q, k, v, mask)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal and mask is None)
        return self.dropout(self.wo(y.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.ffn_dim)
        self.w3 = Linear(config.dim, config.ffn_dim)
        self.w2 = Linear(config.ffn_dim, config.dim)
        self.dropout = Dropout(config.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and added."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim)
        self.ffn_norm = RMSNorm(config.dim)
        self.drop_path = DropPath(config.drop_path * layer / max(1, config.n_layers - 1))

    def forward(self, x: Tensor, table: Tensor | None, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.attention(self.attention_norm(x), table, cache, mask))
        return x + self.drop_path(self.feed_forward(self.ffn_norm(x)))


class ClassEmbedding(nn.Module):
    """A vector a class; the last row is the null class."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.null_class = config.n_classes
        self.embedding_table = nn.Embedding(config.n_classes + config.null_class, config.dim)

    def initialise(self, generator: torch.Generator | None) -> None:
        self.embedding_table.weight.normal_(std=0.02, generator=generator)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding_table(classes)[:, None]

    def with_null(self, classes: Tensor) -> Tensor:
        """The classes, then as many times no class."""
        return torch.cat([classes, torch.full_like(classes, self.null_class)])


class CaptionProjection(nn.Module):
    """Features of a text encoder to vectors of the transformer."""

    def __init__(self, caption_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(caption_dim, dim)
        self.fc2 = Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """A vector for each slot of a caption. "No caption" is a fixed random one, as long as the one that it replaces."""

    uncond_embedding: Tensor

    def __init__(self, config: ModelConfig, caption_dim: int) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(caption_dim, config.dim)
        self.register_buffer("uncond_embedding", torch.empty(config.caption_slots, caption_dim))

    def initialise(self, generator: torch.Generator | None) -> None:
        self.cap_proj.fc1.weight.normal_(std=0.02, generator=generator)
        self.cap_proj.fc2.weight.normal_(std=0.02, generator=generator)
        self.uncond_embedding.normal_(std=self.uncond_embedding.shape[1] ** -0.5, generator=generator)

    def forward(self, captions: Captions) -> Tensor:
        return self.cap_proj(captions.features.to(self.uncond_embedding.dtype))

    def with_null(self, captions: Captions) -> Captions:
        """The captions, then as many times no caption."""
        null = self.uncond_embedding.to(captions.features.dtype).expand_as(captions.features)
        return Captions(torch.cat([captions.features, null]), captions.lengths.repeat(2))


class ClusterOutput(nn.Module):
    """The first half of a factorised output: logits of the clusters, and which tokens each cluster has.

    The partition is part of the weights: a model knows what its clusters are.
    """

    token_to_cluster: Tensor
    live: Tensor

    def __init__(self, n_clusters: int, n_tokens: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_clusters, dim))
        self.register_buffer("token_to_cluster", torch.arange(n_tokens) % n_clusters)
        self.register_buffer("live", torch.ones(n_tokens, dtype=torch.bool))

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight)


def padding_of(condition: Tensor | Captions) -> Tensor | None:
    """How many slots of each condition are empty: (B,); None of classes, which fill theirs."""
    return condition.padding if isinstance(condition, Captions) else None


class Transformer(nn.Module):
    """A class or a caption, then tokens in order; each position predicts the next token, or without the mask its own.

    Parameters
    ----------
    config : ModelConfig
    generator : torch.Generator, optional
        Of the initial weights: normal with deviation 0.02, `output` zero. Models that differ in their vocabularies
        alone start from the same trunk.
    """

    rotation_table: Tensor | None

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding: Any  # of a class or of a caption
        if config.caption_dim is None:
            self.cls_embedding = ClassEmbedding(config)
        else:
            self.cls_embedding = CaptionEmbedding(config, config.caption_dim)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.tok_dropout = Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim)
        self.output = Linear(config.dim, config.n_outputs)
        self.cluster_output = None
        if config.n_clusters is not None:
            self.cluster_output = ClusterOutput(config.n_clusters, config.n_outputs, config.dim)
        self.positional_embedding = table = None
        if config.positions == "learned":
            self.positional_embedding = nn.Parameter(torch.empty(config.n_slots + config.n_tokens, config.dim))
        else:
            table = rotation_table(config.grid, config.head_dim, config.n_slots)
        self.register_buffer("rotation_table", table, persistent=False)
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for linear in (module for module in self.layers.modules() if isinstance(module, nn.Linear)):
            linear.weight.normal_(std=0.02, generator=generator)
        self.cls_embedding.initialise(generator)
        if self.positional_embedding is not None:
            self.positional_embedding.normal_(std=self.config.dim**-0.5, generator=generator)
        self.tok_embeddings.weight.normal_(std=0.02, generator=generator)  # last: it alone depends on V
        self.output.weight.zero_()
        if self.cluster_output is not None:
            self.cluster_output.weight.zero_()

    def factorise(self, token_to_cluster: Tensor, live: Tensor) -> None:
        """Say what the clusters of a factorised output are.

        Parameters
        ----------
        token_to_cluster : Tensor of shape (V,), int64
            Cluster of each token, 0 to G - 1.
        live : Tensor of shape (V,), bool
            Which tokens may be predicted; at least one of each cluster.

        Raises
        ------
        ValueError
            If the output is not factorised, or some cluster has no token that may be predicted.
        """
        n_clusters, n_tokens = self.config.n_clusters or 0, self.config.n_outputs
        sizes = token_to_cluster[live].bincount(minlength=n_clusters)
        if self.cluster_output is None or len(token_to_cluster) != n_tokens or sizes.shape != (n_clusters,):
            raise ValueError(f"expected {n_tokens} tokens in {n_clusters} clusters, got {len(token_to_cluster)} tokens")
        if (sizes == 0).any():
            raise ValueError(f"{int((sizes == 0).sum())} clusters have no live token")
        self.cluster_output.token_to_cluster.copy_(token_to_cluster)
        self.cluster_output.live.copy_(live)

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def embed(self, condition: Tensor | Captions, tokens: Tensor) -> Tensor:
        """Vectors (B, P + T', D) of classes (B,) or captions and the first T' tokens (B, T'); T' may be 0."""
        return torch.cat([self.cls_embedding(condition), self.tok_embeddings(tokens)], dim=1)

    def states(self, x: Tensor, cache: KVCache | None = None, padding: Tensor | None = None) -> Tensor:
        """What `output` projects to logits, (B, S, D), of vectors x (B, S, D) which follow what the cache holds.

        A cache is extended by the S positions; more than one at a time only into an empty one. It keeps `padding` (B,),
        how many of the first positions hold nothing; see `Captions`.
        """
        places: slice | Tensor = slice(x.shape[1])
        mask = None if padding is None else visible(padding, 0, x.shape[1])
        if cache is not None:
            places, mask = cache.advance(x.shape[1], padding)
        table = None if self.rotation_table is None else self.rotation_table[places]
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[places]
        x = self.tok_dropout(x)
        for layer in self.layers:
            x = layer(x, table, cache, mask)
        return self.norm(x)

    def logits(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, S, V), float32; as `states`. A factorised output's are log-probabilities, far below all others
        for what is never predicted."""
        return self.head(self.states(x, cache))

    def head(self, states: Tensor) -> Tensor:
        """Logits (B, S, V), float32, of states (B, S, D)."""
        logits = self.output(states).float()
        if self.cluster_output is None:
            return logits
        clusters = self.cluster_output(states).float()
        return factorised_log_probs(logits, clusters, self.cluster_output.token_to_cluster, self.cluster_output.live)

    def forward(self, condition: Tensor | Captions, tokens: Tensor) -> Tensor:
        """Logits of all positions at once: teacher-forced where the model is causal.

        Parameters
        ----------
        condition : Tensor of shape (B,), int64, or Captions
            Classes, of which `config.n_classes` is the null class, or captions.
        tokens : Tensor of shape (B, T'), int64
            The first T' tokens, T' < T; all T where the model is not causal.

        Returns
        -------
        logits : Tensor of shape (B, 1 + T', V), float32
            Of the tokens 0 to T'; (B, T, V), of the positions of `tokens`, where the model is not causal.
        """
        states = self.states(self.embed(condition, tokens), padding=padding_of(condition))
        return self.head(states[:, self.config.n_slots - self.config.causal :])

    def prefill(self, condition: Tensor | Captions, tokens: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of the token after the condition and `tokens` (B, T'); fills the empty cache with all of it."""
        return self.head(self.states(self.embed(condition, tokens), cache, padding_of(condition))[:, -1])

    def with_null(self, condition: Tensor | Captions) -> Tensor | Captions:
        """The condition of both branches of guidance, 2B: as given, then none."""
        return self.cls_embedding.with_null(condition)


PRESETS = {
    # name       layers heads  dim  ffn_multiple
    "tiny":      (4,    4,   128,  32),
    "GPT-B":     (12,  12,   768, 256),
    "GPT-L":     (24,  16,  1024, 256),
    "GPT-XL":    (36,  20,  1280, 256),
    "GPT-XXL":   (48,  24,  1536, 256),
    "GPT-XXXL":  (48,  40,  2560, 256),
    "GPT-1B":    (22,  32,  2048, 256),
    "GPT-3B":    (24,  32,  3200, 256),
    "GPT-7B":    (32,  32,  4096, 256),
}  # fmt: skip


def preset_name(config: ModelConfig) -> str:
    """Name of the preset that an architecture has the size of; else its layers and width."""
    size = (config.n_layers, config.n_heads, config.dim, config.ffn_multiple)
    return next((name for name, preset in PRESETS.items() if preset == size), f"{config.n_layers}x{config.dim}")


def model_config(
    name: str,
    *,
    vocab_size: int,
    n_classes: int,
    grid: tuple[int, int],
    dropout: float = 0.1,
    token_dropout: float = 0.1,
    drop_path: float = 0.0,
    n_layers: int | None = None,
    **others: Any,
) -> ModelConfig:
    """The architecture of that name (LlamaGen's, and "tiny": under a million parameters) for these data.

    Parameters
    ----------
    dropout : float
        Residual and feed-forward dropout; none where there is drop path, as in LlamaGen's trainer.
    n_layers : int, optional
        Blocks, where not as many as the name says.
    **others
        Of `ModelConfig`.

    Raises
    ------
    InputError
        If there is no such name.
    """
    if name not in PRESETS:
        raise InputError(f"model must be one of {', '.join(PRESETS)}, got {name!r}")
    n_preset_layers, n_heads, dim, ffn_multiple = PRESETS[name]
    dropout = 0.0 if drop_path else dropout
    return ModelConfig(
        dim=dim,
        n_layers=n_layers or n_preset_layers,
        n_heads=n_heads,
        vocab_size=vocab_size,
        n_classes=n_classes,
        grid=grid,
        ffn_multiple=ffn_multiple,
        token_dropout=token_dropout,
        resid_dropout=dropout,
        ffn_dropout=dropout,
        drop_path=drop_path,
        **others,
    )
