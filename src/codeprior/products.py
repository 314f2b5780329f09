"""Matrix products of a training step: float32 on AMD's processors by oneDNN, there a tenth faster than by MKL.

On Intel's MKL is the faster. torch gives oneDNN the products in bfloat16 only. Its own name for the others is not
promised to last, so all that use it ask `has_onednn`; without it, and for what is small, the products are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from codeprior.machine import is_amd

WORTH_IT = 1 << 26  # multiplications, a millisecond: with less it is calls that take the time


def has_onednn() -> bool:
    """Whether this torch has oneDNN's products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def eager_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU, where kernels of our own pay, and torch's compiler, which makes its own, is not used."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def trains_on_cpu(x: Tensor) -> bool:
    """Whether that is so and gradients of x will be asked for; without them results stay torch's to the last bit."""
    return eager_on_cpu(x) and torch.is_grad_enabled() and x.requires_grad


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``: x (..., D), weight (V, D); no gradients."""
    if _suits(x, weight):
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return y
    return F.linear(x, weight)


class Linear(nn.Linear):
    """A linear map without bias, whose products in a training step are `product`'s."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__(n_inputs, n_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if trains_on_cpu(self.weight) and not torch.is_autocast_enabled("cpu") and _suits(x, self.weight):
            y: Tensor = _Linear.apply(x, self.weight)
            return y
        return F.linear(x, self.weight)


def _suits(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return on_cpu and x.numel() * len(weight) >= WORTH_IT and is_amd() and has_onednn()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        x_grad = product(grad, weight.T) if ctx.needs_input_grad[0] else None
        rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return x_grad, rows.T @ columns  # MKL's, which is the faster here
