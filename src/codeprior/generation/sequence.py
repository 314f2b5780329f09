"""A token to a sequence: one token after the other, each from what the cache holds of those before.

Shapes: B batch, T tokens, V vocabulary of the model (tokens or clusters).
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeprior.captions import Captions
from codeprior.generation.attention import OneQueryCache
from codeprior.generation.decoding import Decoding, logits_to_probs, sample_tokens
from codeprior.generation.guidance import Guidance, count_guided, guide
from codeprior.generation.packed import products_dtype
from codeprior.model import KVCache, Transformer


def decode_one_token(model: Transformer, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits (B, V) of the token after `tokens` (B,); extends the cache."""
    return model.logits(model.tok_embeddings(tokens)[:, None], cache)[:, -1]


def choose(logits: Tensor, scale: Tensor, uniforms: Tensor, decoding: Decoding) -> Tensor:
    """Tokens (B,) from logits (B, V), or (2B, V) of both branches of guidance, and uniform numbers (B,)."""
    if len(logits) > len(uniforms):
        logits = guide(logits, scale)
    return sample_tokens(logits_to_probs(logits, decoding), uniforms)


def step(
    model: Transformer, tokens: Tensor, cache: KVCache, scale: Tensor, uniforms: Tensor, decoding: Decoding
) -> Tensor:
    """The tokens (B,) after `tokens` (B,); the cache holds one branch of guidance or both."""
    n_branches = cache.keys.shape[1] // len(tokens)
    return choose(decode_one_token(model, tokens.repeat(n_branches), cache), scale, uniforms, decoding)


class Engine:
    """How steps are computed: as they stand. See `compiled.CompiledEngine`."""

    def new_cache(self, model: Transformer, batch_size: int, device: torch.device) -> KVCache:
        """An empty cache, as precise as the products that fill it."""
        kind = OneQueryCache if device.type == "cpu" else KVCache
        return kind(model.config, batch_size, device=device, dtype=products_dtype(model))

    def step(
        self, model: Transformer, tokens: Tensor, cache: KVCache, scale: Tensor, uniforms: Tensor, decoding: Decoding
    ) -> Tensor:
        """As `step`."""
        return step(model, tokens, cache, scale, uniforms, decoding)


@torch.no_grad()
def generate(
    model: Transformer,
    condition: Tensor | Captions,
    uniforms: Tensor,
    decoding: Decoding,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    prefix: Tensor | None = None,
    engine: Engine = Engine(),  # noqa: B008 - holds nothing
) -> Tensor:
    """Sample sequences of tokens.

    Parameters
    ----------
    model : Transformer
        In `eval()`.
    condition : Tensor of shape (B,), int64, or Captions
        Classes or captions.
    uniforms : Tensor of shape (B, T), float64
        Uniform numbers in [0, 1): all the randomness there is.
    decoding : Decoding
    guidance : Guidance
        The conditional and the unconditional branch run as one batch, the latter up to the last token that needs it.
    prefix : Tensor of shape (B, T'), int64, optional
        The first T' tokens, which are given.
    engine : Engine

    Returns
    -------
    tokens : Tensor of shape (B, T), int64
    """
    batch_size, n_tokens = uniforms.shape
    by_token = guidance.scales(n_tokens)
    scales, n_guided = torch.from_numpy(by_token).to(uniforms.device, torch.float32), count_guided(by_token)
    tokens = torch.empty(batch_size, n_tokens, dtype=torch.int64, device=uniforms.device)
    n_given = 0 if prefix is None else prefix.shape[1]
    if prefix is not None:
        tokens[:, :n_given] = prefix
    n_branches = 1 + (n_given < n_guided)
    cache = engine.new_cache(model, n_branches * batch_size, uniforms.device)
    condition = model.with_null(condition) if n_branches == 2 else condition
    logits = model.prefill(condition, tokens[:, :n_given].repeat(n_branches, 1), cache)
    tokens[:, n_given] = choose(logits, scales[n_given], uniforms[:, n_given], decoding)
    for index in range(n_given + 1, n_tokens):
        if index == n_guided:
            cache.keep(batch_size)
        last, scale, lots = tokens[:, index - 1], scales[index], uniforms[:, index]
        tokens[:, index] = engine.step(model, last, cache, scale, lots, decoding)
    return tokens
