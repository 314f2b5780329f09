"""Attention of one new token on a CPU: a cache whose keys and values are read once, in order, as they lie in memory.

One query a head leaves no product of matrices: the time is that of reading the cache. torch's kernels for it take one
and a half (float32) to six times (bfloat16) as long as this one; see benchmarks/README.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from codeprior.model import KVCache


class OneQueryCache(KVCache):
    """Keys and values on a CPU, in float32 or bfloat16; sums are float32."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.shape[2] > 1:
            return super().attend(layer, q, k, v, mask)
        self.keys[layer, :, :, self.length - 1] = k[:, :, 0]
        self.values[layer, :, :, self.length - 1] = v[:, :, 0]
        empty = np.zeros(len(q), dtype=np.int64) if self.padding is None else self.padding.numpy()
        queries, out = q.float().contiguous(), torch.empty(q.shape)
        seen = _as_numpy(self.keys[layer]), _as_numpy(self.values[layer])
        _attend_one(queries.numpy(), *seen, empty, np.empty(self.length, dtype=np.float32), out.numpy())
        return out.type_as(q)


def _as_numpy(x: Tensor) -> np.ndarray:
    """The same memory; NumPy has no bfloat16, so its bits stand for it."""
    return (x if x.dtype == torch.float32 else x.view(torch.uint16)).numpy()


def _typed_widen(_context: Any, x: types.Type) -> Any:
    """float32 of a float32, or of the bits of a bfloat16."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if x == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(x), generate


_widen: Any = intrinsic(_typed_widen)


def attend_one(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, empty: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """Fill `out` (B, N, 1, H) with what queries of that shape find in the first keys and values (B, N, S, H).

    As many of these as `weights` is long, a working space, but for the very first `empty` (B,).
    """
    n_seen = len(weights)
    scale = np.float32(1) / np.sqrt(np.float32(q.shape[3]))
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            top = np.float32(-np.inf)
            for s in range(empty[b], n_seen):
                logit = np.float32(0)
                for h in range(q.shape[3]):
                    logit += q[b, n, 0, h] * _widen(keys[b, n, s, h])
                weights[s] = logit * scale
                top = max(top, weights[s])
            total = np.float32(0)
            out[b, n, 0] = np.float32(0)
            for s in range(empty[b], n_seen):
                weight = np.exp(weights[s] - top)
                total += weight
                for h in range(q.shape[3]):
                    out[b, n, 0, h] += weight * _widen(values[b, n, s, h])
            for h in range(q.shape[3]):
                out[b, n, 0, h] /= total


# Sums in any order, so that they become vectors: of equal inputs they are equal, and they decide no order.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
try:
    _attend_one = njit(cache=True, **_OPTIONS)(attend_one)
except RuntimeError:  # neither the package nor the user's cache folder can be written
    _attend_one = njit(**_OPTIONS)(attend_one)
