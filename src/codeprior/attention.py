"""Attention of a training step on a CPU, by plain matrix products: there they beat torch's kernel.

Shapes: B batch, S positions, N heads, H head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from codeprior.products import eager_on_cpu, trains_on_cpu

ROWS = 64  # positions whose weights are made at a time; what they do not see, about half, is left out


def beats_kernel(x: Tensor, *, causal: bool) -> bool:
    """Whether `attention` of what is made of x (B, S, ...) is faster than torch's kernel: on a CPU, in training.

    Under autocast that is slow, most of all with few positions; in float32 it is the slower one where the mask leaves
    out half of the work. Of many positions the S x S weights, kept for the way back, cost too much memory.
    """
    n = x.shape[1]
    if torch.is_autocast_enabled("cpu"):
        return eager_on_cpu(x) and n <= (576 if causal else 256)
    return trains_on_cpu(x) and causal and 128 < n <= 576


def attention(qkv: Tensor, table: Tensor | None, *, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(H)) v of each head, in float32, each position seeing itself and those before, or all.

    Parameters
    ----------
    qkv : Tensor of shape (B, S, 3, N, H)
        Queries, keys and values.
    table : Tensor of shape (S, H / 2, 2), float32, or None
        Cosines and sines that pairs of queries and keys are turned by before, as complex numbers.
    causal : bool
        Whether a position sees none of those after it.

    Returns
    -------
    Tensor of shape (B, S, N H), float32
    """
    y: Tensor = _Attention.apply(qkv, table, causal)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, qkv: Tensor, table: Tensor | None, causal: bool) -> Tensor:
        b, s, _, n, h = qkv.shape
        heads = qkv.permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
        ctx.turns = None if table is None else torch.view_as_complex(table)
        _turn(heads, ctx.turns)
        q, k, v = heads.flatten(1, 2)  # (B N, S, H) each
        q *= h**-0.5
        later = torch.ones(ROWS, ROWS, dtype=torch.bool, device=q.device).triu_(1)
        y, weights, ctx.spans = torch.empty_like(v), [], _spans(s, causal)
        for new, seen in ctx.spans:
            scores = torch.bmm(q[:, new], k[:, seen].transpose(1, 2))
            if causal:
                scores[:, :, new].masked_fill_(later[: scores.shape[1], : scores.shape[1]], -torch.inf)
            weights.append(scores.softmax(-1))
            y[:, new] = torch.bmm(weights[-1], v[:, seen])
        ctx.save_for_backward(q, k, v, y, *weights)
        return y.unflatten(0, (b, n)).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        q, k, v, y, *weights = ctx.saved_tensors
        b, h = len(grad), q.shape[-1]
        grad = grad.unflatten(-1, (-1, h)).transpose(1, 2).reshape(q.shape)
        mean = (grad * y).sum(-1, keepdim=True)  # of the weights' gradients, weighted
        grads = torch.empty(3, *q.shape, dtype=q.dtype, device=q.device)
        q_grad, k_grad, v_grad = grads
        for (new, seen), p in zip(reversed(ctx.spans), reversed(weights), strict=True):
            scores_grad = torch.bmm(grad[:, new], v[:, seen].transpose(1, 2)).sub_(mean[:, new]).mul_(p)
            q_grad[:, new] = torch.bmm(scores_grad, k[:, seen])
            of_keys, of_values = torch.bmm(scores_grad.transpose(1, 2), q[:, new]), torch.bmm(p.mT, grad[:, new])
            if new.stop == q.shape[1]:  # the last positions see all, and come first
                k_grad.copy_(of_keys)
                v_grad.copy_(of_values)
            else:
                k_grad[:, seen] += of_keys
                v_grad[:, seen] += of_values
        q_grad *= h**-0.5
        grads = grads.unflatten(1, (b, -1))
        _turn(grads, None if ctx.turns is None else ctx.turns.conj())
        return grads.permute(1, 3, 0, 2, 4).contiguous(), None, None


def _turn(heads: Tensor, turns: Tensor | None) -> None:
    """Turn pairs of queries and keys, in place: heads (3, B, N, S, H), turns (S, H / 2) complex."""
    if turns is not None:
        torch.view_as_complex(heads[:2].unflatten(-1, (-1, 2))).mul_(turns)


def _spans(n: int, causal: bool) -> list[tuple[slice, slice]]:
    """The positions, some at a time, and what these see."""
    if not causal:
        return [(slice(0, n), slice(0, n))]
    return [(slice(start, min(start + ROWS, n)), slice(0, min(start + ROWS, n))) for start in range(0, n, ROWS)]
