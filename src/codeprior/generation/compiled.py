"""Steps compiled, and on CUDA replayed as graphs: one launch a step in place of hundreds.

What is compiled must not change from step to step: the place of the token is a tensor, and it attends to a window of
the cache, which grows in a few leaps. So little is computed on what is still empty.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codeprior.generation.decoding import Decoding
from codeprior.generation.packed import products_dtype
from codeprior.generation.sequence import Engine, step
from codeprior.model import KVCache, ModelConfig, Transformer
from codeprior.progress import announce

_SMALLEST_WINDOW = 64
_MOST_WINDOWS = 8  # each is compiled, and captured, by itself


class WindowedCache(KVCache):
    """A cache that is extended at a place which is a tensor; a window of it is attended to, as far as it is filled.

    It is used for one batch after the other, since graphs are captured for its place in memory.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.keys.zero_()  # what is not filled yet has the weight 0, and 0 times what lies in memory must be 0
        self.values.zero_()
        n_positions = self.keys.shape[3]
        self.leap = max(_SMALLEST_WINDOW, -(-n_positions // _MOST_WINDOWS))
        self.place = torch.zeros(1, dtype=torch.int64, device=self.keys.device)
        self._whole = self.keys, self.values
        self.clear()

    def clear(self) -> None:
        """Begin with another batch."""
        self.keys, self.values = self._whole
        self.length, self.padding = 0, None
        self.window = 0  # none while the cache is filled with what is given
        self._hold()

    def fits(self, config: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it is what would be made of these."""
        keys, _ = self._whole
        n_positions = config.n_slots + config.n_tokens
        shape = (config.n_layers, batch_size, config.n_heads, n_positions, config.head_dim)
        return (keys.shape, keys.device, keys.dtype) == (shape, device, dtype)

    def _hold(self) -> None:
        for tensor in (self.keys, self.values, self.place):
            torch._dynamo.mark_static_address(tensor)  # so that a graph may write into it

    def keep(self, batch_size: int) -> None:
        super().keep(batch_size)
        self._hold()

    def make_room(self) -> None:
        """Before a step: where it is, and how far it looks."""
        self.place.fill_(self.length)
        self.length += 1
        self.window = min(-(-self.length // self.leap) * self.leap, self.keys.shape[3])

    def advance(self, n_new: int, padding: Tensor | None = None) -> tuple[slice | Tensor, Tensor | None]:
        if not self.window:
            return super().advance(n_new, padding)
        key = torch.arange(self.window, device=self.keys.device)
        mask = (key <= self.place)[None]
        if self.padding is not None:
            mask = mask & (key >= self.padding[:, None])
        return self.place, mask[:, None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self.window:
            return super().attend(layer, q, k, v, mask)
        self.keys[layer].index_copy_(2, self.place, k.to(self.keys.dtype))
        self.values[layer].index_copy_(2, self.place, v.to(self.values.dtype))
        keys, values = self.keys[layer, :, :, : self.window], self.values[layer, :, :, : self.window]
        return F.scaled_dot_product_attention(q.to(keys.dtype), keys, values, attn_mask=mask).type_as(q)


class CompiledEngine(Engine):
    """Steps that torch compiles, or as they stand where it cannot, which is said. `options` are of `torch.compile`."""

    def __init__(self, **options: Any) -> None:
        self._step: Any = torch.compile(step, fullgraph=True, dynamic=False, **(options or {"mode": "reduce-overhead"}))
        self._works = False
        self._cache: WindowedCache | None = None

    def new_cache(self, model: Transformer, batch_size: int, device: torch.device) -> KVCache:
        """An empty cache; the last one, if it is of the same size."""
        dtype = products_dtype(model)
        if self._cache is None or not self._cache.fits(model.config, batch_size, device, dtype):
            self._cache = WindowedCache(model.config, batch_size, device=device, dtype=dtype)
        self._cache.clear()
        return self._cache

    def step(
        self, model: Transformer, tokens: Tensor, cache: KVCache, scale: Tensor, uniforms: Tensor, decoding: Decoding
    ) -> Tensor:
        assert isinstance(cache, WindowedCache)
        cache.make_room()
        if cache.keys.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        given = (model, tokens, cache, scale, uniforms, decoding)
        with torch._dynamo.config.patch(recompile_limit=4 * _MOST_WINDOWS):
            try:
                tokens = self._step(*given)
            except Exception as error:  # of torch's compiler, of triton, or for want of a C++ compiler
                if self._works:
                    raise
                self._step = step
                first_line = str(error).strip().splitlines()[0]
                announce(f"sample: steps are not compiled ({type(error).__name__}: {first_line}); --no-compile says so")
                tokens = step(*given)
        self._works = True
        return tokens
